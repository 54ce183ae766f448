//! The name by which glibc loads the module, and that it is never unloaded: a host that calls dlclose(3) while
//! another thread is inside would crash.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libnss_iam.so.2");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
