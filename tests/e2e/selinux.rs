//! The SELinux policy, built and loaded into a policy store, and that policy asked. The kernel here enforces none.

use pam_iam_tests::{Machine, repository};

#[test]
fn the_selinux_policy_lets_every_part_do_its_work_and_no_more() {
    let machine = Machine::new().start();
    let source = repository().join("packaging/selinux");
    let packages = repository().join("target/selinux-debs");
    machine
        .sh(&format!("DEBIAN_FRONTEND=noninteractive dpkg --install '{}'/*.deb", packages.display()))
        .succeeds();
    machine
        .sh(&format!("cp -r '{}' /root/policy && cd /root/policy && make -s -f /usr/share/selinux/devel/Makefile pam_iam.pp && semodule -N -s default -i pam_iam.pp", source.display()))
        .succeeds();
    let rules = |query: &str| {
        machine.sh(&format!("sesearch {query} /etc/selinux/default/policy/policy.*")).succeeds()
    };
    for domain in ["sshd_t", "sysadm_sudo_t", "crond_t", "system_dbusd_t"] {
        for query in [
            "-t pam_iam_resolver_t -c unix_stream_socket -p connectto",
            "-t pam_iam_runtime_t -c sock_file -p write",
            "-t pam_iam_runtime_t -c dir -p search",
        ] {
            assert!(rules(&format!("-A -s {domain} {query}")).contains("allow"), "{domain} {query}");
        }
    }
    for query in [
        "-A -s pam_iam_resolver_t -t http_port_t -c tcp_socket -p name_connect",
        "-A -s pam_iam_resolver_t -t pam_iam_resolver_t -c udp_socket -p connect",
        "-A -s pam_iam_resolver_t -t pam_iam_cache_t -c file -p create",
        "-A -s pam_iam_resolver_t -t cert_t -c file -p read",
        "-A -s init_t -t pam_iam_runtime_t -c sock_file -p create",
        "-A -s init_t -t pam_iam_resolver_t -c process2 -p nnp_transition",
        "-T -s init_t -t pam_iam_resolver_exec_t -c process",
        "-T -s sshd_t -t pam_iam_resolver_exec_t -c process",
        "-A -s sshd_t -t pam_iam_runtime_t -c file -p create",
        "-A -s sshd_t -t user_home_dir_t -c dir -p create",
        "-T -s sshd_t -t home_root_t -c dir",
    ] {
        assert!(!rules(query).is_empty(), "{query}");
    }
    for query in [
        "-A -s pam_iam_resolver_t -t shadow_t -c file",
        "-A -s pam_iam_resolver_t -t user_home_t -c file",
        "-A -s pam_iam_resolver_t -t etc_t -c file -p write",
        "-A -s pam_iam_resolver_t -c capability -p setuid,setgid,dac_override,sys_admin,sys_ptrace",
        "-A -s sshd_t -t pam_iam_cache_t -c file",
        "-A -s user_t -t pam_iam_cache_t -c file",
        "-A -s user_t -t pam_iam_runtime_t -c file",
    ] {
        assert_eq!(rules(query), "", "{query}");
    }
    let labels = machine.sh("matchpathcon -f /etc/selinux/default/contexts/files/file_contexts /run/pam_iam/resolver.sock /var/cache/pam_iam/cache.json /usr/libexec/pam_iam/iam-resolver").succeeds();
    for label in ["pam_iam_runtime_t", "pam_iam_cache_t", "pam_iam_resolver_exec_t"] {
        assert!(labels.contains(label), "{labels}");
    }
}
