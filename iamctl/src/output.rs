//! Output: text with colours on a terminal, or JSON.

use std::io::{IsTerminal, Write};

use serde_json::Value;

/// How results are shown.
pub struct Output {
    json: bool,
    colours: bool,
}

/// How serious a word is, shown by its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// To be looked at.
    Doubtful,
    /// Wrong.
    Bad,
}

impl Output {
    /// Returns an output of JSON, or of text.
    pub fn new(json: bool) -> Self {
        // NO_COLOR, see <https://no-color.org/>.
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { json, colours }
    }

    /// Prints a result as JSON or as text.
    pub fn show(&self, json: &Value, text: &str) {
        let text = if self.json { format!("{json:#}") } else { text.to_owned() };
        let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
    }

    /// Prints why there is no result.
    pub fn error(&self, why: &str) {
        if self.json {
            let _ = writeln!(std::io::stdout(), "{:#}", serde_json::json!({ "error": why }));
        }
        let _ = writeln!(std::io::stderr(), "iamctl: {why}");
    }

    /// Prints a remark beside a result.
    pub fn remark(&self, what: &str) {
        let _ = writeln!(std::io::stderr(), "iamctl: {what}");
    }

    /// Returns `word` in the colour of its tone.
    pub fn paint(&self, tone: Tone, word: &str) -> String {
        if !self.colours {
            return word.to_owned();
        }
        let code = match tone {
            Tone::Good => 32,
            Tone::Doubtful => 33,
            Tone::Bad => 31,
        };
        format!("\x1b[{code}m{word}\x1b[0m")
    }
}
