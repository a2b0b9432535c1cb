//! README.md, so that its Rust is compiled and run with the documentation tests.
#![doc = include_str!("../../README.md")]
