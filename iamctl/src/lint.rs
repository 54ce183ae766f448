//! `iamctl lint`: lists the IAM users who will have trouble logging in.

use std::fmt::Write;

use pam_iam_core::wire::{Linted, Request, Roster};
use serde_json::json;

use crate::Context;
use crate::error::{Error, Reply};
use crate::output::Tone;

/// Prints these users. Returns whether there are none.
pub fn run(context: &Context) -> Result<Reply, Error> {
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
    let roster: Roster = context.report(&Request::Roster)?;
    let leftovers = crate::doctor::leftovers_of(&context.config()?, &roster);
    for (_, what) in &leftovers {
        let _ = writeln!(text, "{}: {what}", context.output.paint(Tone::Doubtful, "name"));
    }
    let names: Vec<_> =
        leftovers.iter().map(|(name, what)| json!({ "name": name, "problem": what })).collect();
    let _ = writeln!(
        text,
        "{users} IAM users, {allowed} may log in, {} findings",
        findings.len() + leftovers.len()
    );
    context
        .output
        .show(&json!({ "users": users, "allowed": allowed, "findings": findings, "names": names }), &text);
    Ok(Reply::from(findings.is_empty() && leftovers.is_empty()))
}
