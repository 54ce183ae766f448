//! `iamctl lint`: who of all IAM users will have trouble logging in.

use std::fmt::Write;

use pam_iam_core::wire::{Linted, Request};
use serde_json::json;

use crate::Context;
use crate::output::Tone;

/// True if nobody will.
pub fn run(context: &Context) -> Result<bool, String> {
    let Linted { users, allowed, findings } = context.report(&Request::Lint)?;
    let mut text = String::new();
    for finding in &findings {
        let (tone, word) =
            if finding.allowed { (Tone::Bad, "may log in") } else { (Tone::Doubtful, "may not log in") };
        let _ = writeln!(
            text,
            "{} ({}): {}",
            finding.iam_name,
            context.output.paint(tone, word),
            finding.problem
        );
    }
    let _ = writeln!(text, "{users} IAM users, {allowed} may log in, {} findings", findings.len());
    context.output.show(&json!({ "users": users, "allowed": allowed, "findings": findings }), &text);
    Ok(findings.is_empty())
}
