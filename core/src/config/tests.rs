use std::path::Path;

use super::*;
use std::time::Duration;

const EXAMPLE: &str = include_str!("../../../docs/config.example.toml");
const LEAST: &str = "[access]\nallow = ['ssh-users']\nsudo = ['ssh-admins']";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("config.toml"))
}

fn error(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

/// Returns the keys that the code has, as `section.key`.
fn keys() -> Vec<String> {
    let value = serde_json::to_value(parse(LEAST).unwrap()).unwrap();
    let sections = value.as_object().unwrap().iter();
    sections
        .flat_map(|(section, keys)| {
            keys.as_object().unwrap().keys().map(move |key| format!("{section}.{key}"))
        })
        .collect()
}

#[test]
fn the_example_has_every_key_and_its_default() {
    assert_eq!(parse(EXAMPLE).unwrap(), parse(LEAST).unwrap(), "a default in the example is not the code's");
    let mut section = String::new();
    let mut documented = Vec::new();
    for line in EXAMPLE.lines() {
        let header = line.strip_prefix("# ").unwrap_or(line).strip_prefix('[');
        if let Some(name) = header.and_then(|line| line.strip_suffix(']')) {
            section = name.to_owned();
            // The header of a key that is itself a table.
            documented.extend(name.contains('.').then(|| name.to_owned()));
        }
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some((key, _)) = line.split_once(" = ")
            && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        {
            documented.push(format!("{section}.{key}"));
        }
    }
    // A section of a shared account has the name of the account.
    documented.retain(|key| !key.starts_with("shared."));
    documented.sort();
    documented.dedup();
    assert_eq!(documented, keys());
}

#[test]
fn the_commented_keys_of_the_example_are_valid() {
    let lines = EXAMPLE.lines().map(|line| match line.strip_prefix("# ") {
        Some(header @ ("[shared.deploy]" | "[accounts.uids]")) => header,
        Some(code) if code.contains(" = ") && !code.contains(',') || code.starts_with('"') => code,
        _ => line,
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    let config = parse(&text).unwrap();
    assert_eq!((config.groups.len(), config.shared.len()), (2, 1));
    assert!(config.aws.assume_role.is_some() && config.aws.external_id.is_some());
}

#[test]
fn without_allow_nothing_goes() {
    assert!(error("").contains("access"));
    assert_eq!(error("[access]\nsudo = 'all'"), "config.toml:1: missing field `allow`");
    assert!(error("[access]\nallow = 'none'").starts_with("config.toml:2: expected \"all\" or a list"));
    assert!(error("[access]\nallow = []").contains("an empty list would allow nobody"));
    assert!(error("[access]\nallow = 'ssh-users'").contains("write [\"ssh-users\"]"));
    assert!(error("[access]\nallow = ['a b']").contains("IAM group \"a b\" holds the character ' '"));
}

#[test]
fn a_tag_needs_patterns() {
    let access = |allow: &str| parse(&format!("[access]\nallow = {allow}"));
    let tagged = access("{ tag = 'ssh-groups', within = ['prod-*', 'ops'] }").unwrap();
    assert!(matches!(&tagged.access.allow, Allowed::Tag(rule) if rule.tag.as_str() == "ssh-groups"));
    for (wrong, what) in [
        ("{ tag = 'ssh-groups' }", "missing field `within`"),
        ("{ tag = 'ssh-groups', within = [] }", "an empty list would allow nobody"),
        ("{ tag = 'ssh-groups', within = ['a b'] }", "expected a pattern"),
        ("{ tag = '../x', within = ['*'] }", "expected the key of an instance tag"),
        ("{ tag = 'x', within = ['*'], else = 'all' }", "unknown field `else`"),
    ] {
        let message = access(wrong).unwrap_err().to_string();
        assert!(message.starts_with("config.toml:2: ") && message.contains(what), "{wrong}: {message}");
    }
}

#[test]
fn a_shared_account_is_neither_root_nor_adopted() {
    let shared = |more: &str| error(&format!("{LEAST}\n{more}"));
    let root = shared("[shared.root]\ngroups = ['ops']");
    assert_eq!(root, "config.toml:4: root is shared with nobody");
    let both = shared("[accounts]\nadopt = ['deploy']\n[shared.deploy]\ngroups = ['ops']");
    assert_eq!(both, "config.toml:6: deploy is both adopted and shared; choose one");
}

#[test]
fn a_typo_names_its_line() {
    let typo = error(&format!("{LEAST}\n\n[freshness]\nmaxage = '10s'"));
    assert!(typo.starts_with("config.toml:6: unknown field `maxage`"), "{typo}");
    let section = error(&format!("{LEAST}\n[fresh]\nmax_age = '10s'"));
    assert!(section.starts_with("config.toml:4: unknown field `fresh`"), "{section}");
    assert!(error("[access\nallow").starts_with("config.toml:1: "));
}

#[test]
fn a_value_that_makes_no_sense_names_its_line() {
    for (line, what) in [
        ("[freshness]\nmax_age = '10'", "expected a duration"),
        ("[freshness]\nmax_age = 10", "expected a duration"),
        ("[freshness]\nmax_age = '99999999999999999999s'", "expected a duration"),
        ("[aws]\ntotal_timeout = '9s'", "at most 8s"),
        ("[aws]\ntotal_timeout = '0s'", "more than 0"),
        ("[accounts]\nhome = '/home'", "{name}"),
        ("[accounts]\nhome = '/{name}/..'", "{name}"),
        ("[accounts]\nhome = 'home/{name}'", "absolute"),
        ("[accounts]\nshell = '/bin/a:b'", "absolute"),
        ("[home]\non_mismatch = 'steal'", "refuse"),
        ("[importer]\nmax_retire = '101%'", "share"),
        ("[resolver]\nmode = 'maybe'", "daemon"),
        ("[groups]\nops = 'root'", "no IAM group maps to the group root"),
        ("[groups]\nops = 'docker'", "allow_privileged"),
        ("[groups]\nops = { group = 'docker' }", "allow_privileged"),
        ("[groups]\nops = 'iam-sudo'", "given by [access] alone"),
        ("[groups]\nops = '-x'", "begins with"),
        ("[shared.deploy]\ngroups = []", "an empty list would allow nobody"),
        ("[shared.deploy]\ngroups = 'ops'", "expected a sequence"),
    ] {
        let message = error(&format!("{LEAST}\n{line}"));
        assert!(message.starts_with("config.toml:5: ") && message.contains(what), "{line}: {message}");
    }
}

#[test]
fn values_are_read_as_meant() {
    let config =
        parse(&format!("{LEAST}\n[freshness]\nmax_age = 0\noffline = '7d'\n[aws]\ncall_timeout = '250ms'"));
    let config = config.unwrap();
    assert_eq!(config.freshness.max_age.0, Duration::ZERO);
    assert_eq!(config.freshness.offline.0, Duration::from_secs(7 * 24 * 3600));
    assert_eq!(config.aws.call_timeout.0, Duration::from_millis(250));
    let name = LinuxName::new("alice").unwrap();
    assert_eq!(config.accounts.home.of(&name), "/home/alice");
    assert_eq!(parse("[access]\nallow = 'all'").unwrap().access.allow, Allowed::All);
}

#[test]
fn a_file_that_others_can_write_is_not_trusted() {
    use std::os::unix::fs::PermissionsExt;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), LEAST).unwrap();
    assert!(Config::load(file.path()).is_ok());
    for mode in [0o666, 0o620] {
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        let error = Config::load(file.path()).unwrap_err().to_string();
        assert!(error.contains("can be written by others") && error.contains("chmod go-w"), "{error}");
    }
    assert!(Config::load(Path::new("/nonexistent/config.toml")).is_err());
}

#[test]
fn a_mistake_elsewhere_keeps_the_further_key_commands() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[access]\nalow = 'all'\n[keys]\nalso_run = ['/bin/rescue %u']").unwrap();
    assert!(Config::load(file.path()).is_err());
    assert_eq!(Config::rescue_commands(file.path()), ["/bin/rescue %u"]);
    std::fs::write(file.path(), "[keys\nalso_run = ['/bin/rescue %u']").unwrap();
    assert!(Config::rescue_commands(file.path()).is_empty());
    assert!(Config::rescue_commands(Path::new("/nonexistent")).is_empty());
}

#[test]
fn a_user_whom_others_run_as_is_no_user_for_the_key_command() {
    let text = "[access]\nallow = 'all'\n[keys]\nuser = 'nobody'\n";
    let error = Config::parse(text, "c.toml".as_ref()).unwrap_err().to_string();
    assert!(error.starts_with("c.toml:4: other programs run as nobody"), "{error}");
}

#[test]
fn an_address_of_aws_that_cannot_be_one_is_an_error_that_names_its_line() {
    let aws = |key: &str, value: &str| parse(&format!("{LEAST}\n[aws]\n{key} = '{value}'"));
    for (key, right) in [
        ("region", "us-gov-west-1"),
        ("endpoint", "http://127.0.0.1:5000"),
        ("endpoint", "https://iam.example.com/path"),
        ("assume_role", "arn:aws-cn:iam::123456789012:role/path/ssh"),
    ] {
        aws(key, right).unwrap();
    }
    for (key, wrong) in [
        ("region", ""),
        ("region", "eu central 1"),
        ("region", "EU-CENTRAL-1"),
        ("endpoint", "iam.example.com"),
        ("endpoint", "https://"),
        ("endpoint", "https:///path"),
        ("endpoint", "https://a b"),
        ("endpoint", "ftp://iam.example.com"),
        ("assume_role", "ssh-directory"),
        ("assume_role", "arn:aws:iam::1234:role/x"),
        ("assume_role", "arn:aws:iam::123456789012:user/x"),
        ("assume_role", "arn:aws:iam::123456789012:role/"),
    ] {
        let said = aws(key, wrong).unwrap_err().to_string();
        assert!(said.starts_with("config.toml:5: "), "{wrong}: {said}");
    }
}

#[test]
fn uids_that_an_operator_assigns_are_of_their_own_range_and_each_is_given_once() {
    let uids = |lines: &str| parse(&format!("{LEAST}\n[accounts.uids]\n{lines}"));
    let config = uids("AIDACKCEVSQ6C2EXAMPLE = 2147287040\nAIDAJQABLZS4A3QDU576Q = 2147352574").unwrap();
    assert_eq!(config.accounts.uids.len(), 2);
    for (wrong, why) in [
        ("AIDACKCEVSQ6C2EXAMPLE = 2147287039", "lies in 2147287040..=2147352574, and 2147287039 does not"),
        ("AIDACKCEVSQ6C2EXAMPLE = 2147352575", "and 2147352575 does not"),
        ("AIDACKCEVSQ6C2EXAMPLE = 0", "and 0 does not"),
        ("'a b' = 2147287040", "is no immutable id"),
        ("AIDA1 = 2147287040\nAIDA2 = 2147287040", "AIDA1 and AIDA2 have the same uid 2147287040"),
    ] {
        let said = uids(wrong).unwrap_err().to_string();
        assert!(said.contains(why), "{wrong}: {said}");
    }
}
