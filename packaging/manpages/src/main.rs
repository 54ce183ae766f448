//! Writes the manual pages of the packages, docs/man/*.in, into a folder: `manpages OUT`.
//!
//! The pages of the programs with options come from the same command lines as their `--help` (`cli.rs` of each), the page of the
//! configuration from docs/config.example.toml. The rest is prose.

#![allow(
    dead_code,
    missing_docs,
    clippy::print_stderr,
    reason = "the command lines of other programs, and a program of the build"
)]

use std::fmt::Write as _;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

#[path = "../../../iamctl/src/cli.rs"]
mod iamctl;
#[path = "../../../importer/src/cli.rs"]
mod importer;
#[path = "../../../resolver/src/cli.rs"]
mod resolver;

/// The date of the release.
const DATE: &str = "November 29, 2026";

fn main() -> ExitCode {
    let Some(out) = std::env::args_os().nth(1) else {
        eprintln!("usage: manpages OUT");
        return ExitCode::from(2);
    };
    match write_pages(Path::new(&out)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("manpages: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write_pages(out: &Path) -> io::Result<()> {
    let repository = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    for entry in std::fs::read_dir(repository.join("docs/man"))? {
        let source = entry?.path();
        let name = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut page = String::new();
        for line in std::fs::read_to_string(&source)?.lines() {
            page += &expand(line, &name, &repository)?;
        }
        let section = name.rsplit('.').next().unwrap_or_default();
        let folder = out.join(format!("man{section}"));
        std::fs::create_dir_all(&folder)?;
        let path = folder.join(&name);
        std::fs::write(&path, page)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o644))?;
    }
    Ok(())
}

/// Replaces the lines `@heading@`, `@options@` and `@commands@` by those parts of the program's page, `@configuration@` by
/// the documented configuration, and `@DATE@` in any other line.
fn expand(line: &str, page: &str, repository: &Path) -> io::Result<String> {
    match line {
        "@heading@" => heading(command(page)?),
        "@options@" => options(command(page)?),
        "@commands@" => commands(&command(page)?),
        "@configuration@" => {
            Ok(configuration(&std::fs::read_to_string(repository.join("docs/config.example.toml"))?))
        }
        line => Ok(line.replace("@DATE@", DATE) + "\n"),
    }
}

/// Returns the command line of the program that a page is about.
fn command(page: &str) -> io::Result<Command> {
    match page {
        "iamctl.8" => Ok(iamctl::Arguments::command()),
        "iam-importer.8" => Ok(importer::Arguments::command()),
        "iam-resolver.8" => Ok(resolver::Arguments::command()),
        _ => Err(io::Error::other(format!("{page} is about no program with a command line"))),
    }
}

/// The lines with which clap_mangen begins each text. They define the string `Aq` as an apostrophe.
const PREAMBLE: &str = ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";

fn rendered(render: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> io::Result<String> {
    let mut text = Vec::new();
    render(&mut text)?;
    // Each section comes with the preamble. The breaks around an empty line are replaced, since mandoc warns about them.
    let text = String::from_utf8_lossy(&text).replace(PREAMBLE, "").replace("\\*(Aq", "\\(aq");
    Ok(text.replace(".br\n\n.br\n", ".sp\n"))
}

fn heading(command: Command) -> io::Result<String> {
    let man = Man::new(command).section("8").date(DATE).manual("System Manager's Manual");
    rendered(|text| {
        man.render_title(text)?;
        man.render_name_section(text)?;
        man.render_synopsis_section(text)
    })
}

fn options(command: Command) -> io::Result<String> {
    let man = Man::new(command.disable_help_flag(true).disable_version_flag(true));
    rendered(|text| man.render_options_section(text))
}

/// Returns the options of a command without a title.
fn own_options(command: &Command) -> io::Result<String> {
    Ok(options(command.clone())?.replace(".SH OPTIONS\n", ""))
}

/// Returns a subsection for each command that the help shows, with its own options.
fn commands(program: &Command) -> io::Result<String> {
    let mut section = ".SH COMMANDS\n".to_owned();
    for command in program.get_subcommands().filter(|command| !command.is_hide_set()) {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let _ = write!(section, ".SS {}\n{about}.\n", command.get_name());
        section += &own_options(command)?;
        for action in command.get_subcommands() {
            let about = action.get_about().map(ToString::to_string).unwrap_or_default();
            let _ = write!(section, ".SS {} {}\n{about}.\n", command.get_name(), action.get_name());
            section += &own_options(action)?;
        }
    }
    Ok(section)
}

/// Returns the example configuration in mdoc(7): a subsection for each table, and each key below the text of its comment.
fn configuration(example: &str) -> String {
    let mut section = String::new();
    let mut comment = Vec::new();
    for line in example.lines() {
        let line = line.strip_prefix('#').unwrap_or(line).trim_start();
        let is_key = line.split_once(" = ").is_some_and(|(key, _)| {
            key.bytes().all(|byte| byte.is_ascii_lowercase() || b"_-\"".contains(&byte))
        });
        let table = line.strip_prefix('[').and_then(|line| line.strip_suffix(']'));
        if table.is_none() && !is_key && !line.is_empty() {
            comment.push(line);
            continue;
        }
        section += &paragraph(&comment);
        comment.clear();
        if let Some(table) = table {
            let _ = writeln!(section, ".Ss [{table}]");
        } else if is_key {
            let _ = writeln!(section, ".Dl {}", escaped(line).replace('"', "\\(dq"));
        }
    }
    section + &paragraph(&comment)
}

/// Returns a comment with one sentence per line, as mdoc(7) requires.
fn paragraph(comment: &[&str]) -> String {
    let mut text = String::new();
    for word in comment.join(" ").split(' ').filter(|word| !word.is_empty()) {
        let is_end = word.ends_with(['.', '!', '?', ':']);
        text += &escaped(word);
        text.push(if is_end { '\n' } else { ' ' });
    }
    let lines: Vec<String> = text.lines().map(|line| guarded(line.trim_end())).collect();
    lines.concat()
}

/// Returns a line that does not begin with a control character.
fn guarded(line: &str) -> String {
    match line {
        "" => String::new(),
        line if line.starts_with(['.', '\'']) => format!("\\&{line}\n"),
        line => format!("{line}\n"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\e")
}
