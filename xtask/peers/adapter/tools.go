//go:build tools

// Package tools names the program built from this module.
package tools

import _ "sigs.k8s.io/prometheus-adapter/cmd/adapter"
