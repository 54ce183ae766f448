//! The test box as the end-to-end tests use it.
