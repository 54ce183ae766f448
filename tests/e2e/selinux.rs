//! The SELinux policy, built and loaded into a policy store, and that policy asked. The kernel here enforces none.

use pam_iam_tests::{Machine, repository};

/// Prints `yes` or `no` for each line of `RULE SOURCE TARGET CLASS PERMISSIONS`, with `-` for any.
const ASK: &str = r#"
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

#[test]
fn the_selinux_policy_lets_every_part_do_its_work_and_no_more() {
    let machine = Machine::new().start();
    let source = repository().join("packaging/selinux");
    let packages = repository().join("target/selinux-debs");
    // Unpacked and no more: their scripts would load the whole policy once without our module first.
    machine
        .sh(&format!("for package in '{}'/*.deb; do dpkg-deb --fsys-tarfile $package | tar -x -C / --keep-directory-symlink || exit 1; done", packages.display()))
        .succeeds();
    machine
        .sh(&format!("cp -r '{}' /root/policy && cd /root/policy && make -s -f /usr/share/selinux/devel/Makefile pam_iam.pp && semodule -N -s default -i /usr/share/selinux/default/*.pp.bz2 pam_iam.pp", source.display()))
        .succeeds();
    let mut wanted = Vec::new();
    for domain in ["sshd_t", "sysadm_sudo_t", "crond_t", "system_dbusd_t"] {
        for way in [
            "pam_iam_resolver_t unix_stream_socket connectto",
            "pam_iam_runtime_t sock_file write",
            "pam_iam_runtime_t dir search",
        ] {
            wanted.push((format!("allow {domain} {way}"), "yes"));
        }
    }
    for (rules, answer) in [
        (
            "allow pam_iam_resolver_t http_port_t tcp_socket name_connect
             allow pam_iam_resolver_t pam_iam_resolver_t udp_socket connect
             allow pam_iam_resolver_t pam_iam_cache_t file create
             allow pam_iam_resolver_t cert_t file read
             allow pam_iam_resolver_t init_t unix_dgram_socket sendto
             allow pam_iam_resolver_t sshd_t unix_stream_socket read
             allow sshd_t pam_iam_resolver_t process sigkill
             allow init_t pam_iam_runtime_t sock_file create
             allow init_t pam_iam_resolver_t process2 nnp_transition
             type_transition init_t pam_iam_resolver_exec_t process -
             type_transition sshd_t pam_iam_resolver_exec_t process -
             allow sshd_t pam_iam_runtime_t file create
             allow sshd_t user_home_dir_t dir create
             type_transition sshd_t home_root_t dir -",
            "yes",
        ),
        (
            "allow pam_iam_resolver_t shadow_t file -
             allow pam_iam_resolver_t user_home_t file -
             allow pam_iam_resolver_t etc_t file write
             allow pam_iam_resolver_t - capability dac_override,kill,sys_admin,sys_ptrace
             allow sshd_t pam_iam_cache_t file -
             allow user_t pam_iam_cache_t file -
             allow user_t pam_iam_runtime_t file write",
            "no",
        ),
    ] {
        wanted.extend(rules.lines().map(|rule| (rule.trim().to_owned(), answer)));
    }
    let questions: Vec<&str> = wanted.iter().map(|(rule, _)| rule.as_str()).collect();
    let answers = machine.run(&["python3", "-c", ASK, &questions.join("\n")]).succeeds();
    assert_eq!(answers.lines().count(), wanted.len());
    for ((rule, wanted), answer) in wanted.iter().zip(answers.lines()) {
        assert_eq!(answer, *wanted, "{rule}");
    }
    let labels = machine.sh("matchpathcon -f /etc/selinux/default/contexts/files/file_contexts /run/pam_iam/resolver.sock /var/cache/pam_iam/cache.json /usr/libexec/pam_iam/iam-resolver").succeeds();
    for label in ["pam_iam_runtime_t", "pam_iam_cache_t", "pam_iam_resolver_exec_t"] {
        assert!(labels.contains(label), "{labels}");
    }
}
