//! The image builder from outside: archives made in code, the program run as users run it, and its files read
//! back by other programs where there are some.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::disallowed_types, reason = "the tests run the program as users run it")]
#![expect(clippy::format_push_string, reason = "a test's text may take a moment longer")]

mod boot;
mod build;
mod hostile;
mod inspect;
mod layers;
mod scene;
mod signing;
mod sources;
mod wrap;
