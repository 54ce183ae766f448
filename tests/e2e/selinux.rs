//! The SELinux policy is built, loaded into a policy store and queried. The kernel of these tests enforces no policy.

use pam_iam_tests::{Machine, repository};

/// Prints for each line of `RULE SOURCE TARGET CLASS PERMISSIONS` whether the policy has such a rule with one of these
/// permissions: `yes` or `no`. `-` stands for any target or permission.
const QUERY: &str = r#"
import functools, glob, sys, setools
policy = setools.SELinuxPolicy(glob.glob("/etc/selinux/default/policy/policy.*")[0])
questions = [tuple(line.split()) for line in sys.argv[1].splitlines()]
kinds = {(rule, kind) for rule, _, _, kind, _ in questions}
types = functools.cache(lambda name: {str(kind) for kind in name.expand()})
answers = dict.fromkeys(questions, "no")
for found in policy.terules():
    if (str(found.ruletype), str(found.tclass)) not in kinds:
        continue
    for question in questions:
        rule, source, target, kind, permissions = question
        if (rule == str(found.ruletype) and kind == str(found.tclass) and source in types(found.source)
                and (target == "-" or target in types(found.target))
                and (permissions == "-" or set(permissions.split(",")) & set(found.perms))):
            answers[question] = "yes"
for question in questions:
    print(answers[question])
"#;

/// The SELinux domains that connect to the resolver.
const CLIENTS: [&str; 4] = ["sshd_t", "sysadm_sudo_t", "crond_t", "system_dbusd_t"];

/// The rules that each client needs, without `allow` and the client's domain.
const NEEDED_BY_CLIENTS: [&str; 5] = [
    "pam_iam_resolver_t unix_stream_socket connectto",
    "pam_iam_runtime_t sock_file write",
    "pam_iam_runtime_t dir search",
    "pam_iam_map_t dir search",
    "pam_iam_map_t file read",
];

const NEEDED: [&str; 16] = [
    "allow pam_iam_resolver_t http_port_t tcp_socket name_connect",
    "allow pam_iam_resolver_t pam_iam_resolver_t udp_socket connect",
    "allow pam_iam_resolver_t pam_iam_cache_t file create",
    "allow pam_iam_resolver_t pam_iam_map_t file rename",
    "allow pam_iam_resolver_t etc_t dir watch",
    "allow pam_iam_resolver_t cert_t file read",
    "allow pam_iam_resolver_t init_t unix_dgram_socket sendto",
    "allow pam_iam_resolver_t sshd_t unix_stream_socket read",
    "allow sshd_t pam_iam_resolver_t process sigkill",
    "allow init_t pam_iam_runtime_t sock_file create",
    "allow init_t pam_iam_resolver_t process2 nnp_transition",
    "type_transition init_t pam_iam_resolver_exec_t process -",
    "type_transition sshd_t pam_iam_resolver_exec_t process -",
    "allow sshd_t pam_iam_runtime_t file create",
    "allow sshd_t user_home_dir_t dir create",
    "type_transition sshd_t home_root_t dir -",
];

const FORBIDDEN: [&str; 9] = [
    "allow pam_iam_resolver_t shadow_t file -",
    "allow pam_iam_resolver_t user_home_t file -",
    "allow pam_iam_resolver_t etc_t file write",
    "allow pam_iam_resolver_t - capability dac_override,kill,sys_admin,sys_ptrace",
    "allow pam_iam_resolver_t pam_iam_runtime_t file write",
    "allow sshd_t pam_iam_map_t file write",
    "allow sshd_t pam_iam_cache_t file -",
    "allow user_t pam_iam_cache_t file -",
    "allow user_t pam_iam_runtime_t file write",
];

/// Starts a box with the reference policy and the shipped module in its policy store.
fn machine_with_policy() -> Machine {
    let machine = Machine::new().start();
    let source = repository().join("packaging/selinux");
    let packages = repository().join("target/selinux-debs");
    // The installation scripts of these packages would load the whole policy once without the module.
    let unpack = "for package in '{}'/*.deb; do dpkg-deb --fsys-tarfile $package | tar -x -C / --keep-directory-symlink || exit 1; done";
    machine.sh(&unpack.replace("{}", &packages.to_string_lossy())).succeeds();
    machine.run(&["cp", "-r", &source.to_string_lossy(), "/root/policy"]).succeeds();
    let make = ["make", "-s", "-C", "/root/policy", "-f", "/usr/share/selinux/devel/Makefile", "pam_iam.pp"];
    machine.run(&make).succeeds();
    let load = "semodule -N -s default -i /usr/share/selinux/default/*.pp.bz2 /root/policy/pam_iam.pp";
    machine.sh(load).succeeds();
    machine
}

/// Returns each rule with the answer that [`QUERY`] should give.
fn expected_rules() -> Vec<(String, &'static str)> {
    let of_clients = CLIENTS
        .iter()
        .flat_map(|domain| NEEDED_BY_CLIENTS.map(|rule| (format!("allow {domain} {rule}"), "yes")));
    let needed = NEEDED.iter().map(|rule| ((*rule).to_owned(), "yes"));
    let forbidden = FORBIDDEN.iter().map(|rule| ((*rule).to_owned(), "no"));
    of_clients.chain(needed).chain(forbidden).collect()
}

#[test]
fn the_selinux_policy_allows_what_every_part_needs_and_no_more() {
    let machine = machine_with_policy();
    let rules = expected_rules();
    let questions: Vec<&str> = rules.iter().map(|(rule, _)| rule.as_str()).collect();
    let answers = machine.run(&["python3", "-c", QUERY, &questions.join("\n")]).succeeds();
    assert_eq!(answers.lines().count(), rules.len());
    for ((rule, expected), answer) in rules.iter().zip(answers.lines()) {
        assert_eq!(answer, *expected, "{rule}");
    }

    let contexts = "/etc/selinux/default/contexts/files/file_contexts";
    for (path, label) in [
        ("/run/pam_iam/resolver.sock", "pam_iam_runtime_t"),
        ("/run/pam_iam/map/nss.map", "pam_iam_map_t"),
        ("/var/cache/pam_iam/cache.json", "pam_iam_cache_t"),
        ("/usr/libexec/pam_iam/iam-resolver", "pam_iam_resolver_exec_t"),
    ] {
        let found = machine.run(&["matchpathcon", "-f", contexts, path]).succeeds();
        assert!(found.contains(label), "{found}");
    }
}
