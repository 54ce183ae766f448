//! Values in log lines: no value can forge a field or a line.

use std::fmt::{self, Write};

/// A value of a `field=value` pair. Plain where it is made of letters, digits and `._-+,@:/%` only, else in
/// quotes, with `"`, `\` and every character outside printable ASCII as `\xNN` (the bytes of its UTF-8).
pub struct Value<'a>(pub &'a str);

/// The longest value that is written in full, in bytes; the rest becomes `...`. So no chosen name makes a log line long.
pub const VALUE_MAX: usize = 256;

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-+,@:/%".contains(&b);
        let bytes = self.0.as_bytes().iter().copied();
        if self.0.len() <= VALUE_MAX && bytes.clone().all(plain) {
            return f.write_str(self.0);
        }
        f.write_char('"')?;
        for b in bytes.take(VALUE_MAX) {
            if (b.is_ascii_graphic() || b == b' ') && b != b'"' && b != b'\\' {
                f.write_char(char::from(b))?;
            } else {
                write!(f, "\\x{b:02x}")?;
            }
        }
        if self.0.len() > VALUE_MAX {
            f.write_str("...")?;
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_values_stay_as_they_are() {
        assert_eq!(Value("alice@example.com").to_string(), "alice@example.com");
        assert_eq!(Value("").to_string(), "");
    }

    #[test]
    fn nothing_in_a_value_ends_it() {
        assert_eq!(Value("x result=allow").to_string(), "\"x result=allow\"");
        assert_eq!(Value("a\" b\n\\é").to_string(), "\"a\\x22 b\\x0a\\x5c\\xc3\\xa9\"");
    }

    #[test]
    fn a_long_value_is_cut() {
        let written = Value(&"a".repeat(10_000)).to_string();
        assert!(written.ends_with("aaa...\"") && written.len() < 300);
    }
}
