//go:build tools

// Package tools names the program built from this module.
package tools

import _ "github.com/prometheus/prometheus/cmd/prometheus"
