//! `iam-resolver`: see the library of this package, which its fuzz targets use too.

use std::process::ExitCode;

fn main() -> ExitCode {
    iam_resolver::main()
}
