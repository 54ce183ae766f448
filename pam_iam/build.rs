//! The module is never unloaded: panics around fork and crashes at dlclose(3) are on record for modules with a
//! runtime of their own, and Rust's standard library is one.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
