use super::*;
use crate::table::Table;
use pam_iam_core::id::{FIRST, Gid};
use pam_iam_core::name::LinuxName;
use pam_iam_core::wire::{Group, Refused};
use std::path::Path;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nec2-user:x:1000:1000::/home/ec2-user:/bin/bash\n\
    jonathan:x:1001:1001::/home/jonathan:/bin/zsh\n";
const SHADOW: &str = "root:*:1::::::\nec2-user:!:1::::::\njonathan:$6$x:1:0:99999:7::20999:\n";
const GROUP: &str = "root:x:0:\ndocker:x:998:ec2-user,aduser\njonathan:x:1001:\nsynced:x:1002:jonathan\n";

/// A host on which the importer runs repeatedly.
struct Host {
    roster: Roster,
    config: Config,
    state: State,
    tables: Tables,
    force: bool,
    adopted: Vec<(String, Uid)>,
    others: Directories,
}

fn linux(name: &str) -> LinuxName {
    LinuxName::new(name).unwrap()
}

fn uid(number: u32) -> Uid {
    Uid(FIRST + number)
}

fn text(table: &Table) -> String {
    String::from_utf8(table.to_bytes()).unwrap()
}

impl Host {
    fn new(settings: &str) -> Self {
        let config =
            Config::parse(&format!("[access]\nallow = ['users']\n{settings}"), Path::new("c")).unwrap();
        let tables = Tables {
            passwd: Table::parse(PASSWD.as_bytes()),
            shadow: Some(Table::parse(SHADOW.as_bytes())),
            group: Table::parse(GROUP.as_bytes()),
            gshadow: Some(Table::parse(b"docker:!::ec2-user,aduser\n")),
        };
        let groups = [("docker", Gid(998)), ("iam-sudo", Gid(FIRST + 901)), ("iam-users", Gid(FIRST + 900))];
        let groups = groups.map(|(name, gid)| Group { name: linux(name), gid, members: Vec::new() }).to_vec();
        let roster = Roster {
            users: Vec::new(),
            adopted: Vec::new(),
            refused: Vec::new(),
            groups,
            missing: Vec::new(),
            complete: true,
        };
        Self {
            roster,
            config,
            state: State::default(),
            tables,
            force: false,
            adopted: Vec::new(),
            others: Directories::default(),
        }
    }

    /// Returns a host on which `count` users have accounts.
    fn with_users(settings: &str, count: u32) -> Self {
        let mut host = Self::new(settings);
        for number in 0..count {
            host.add(&format!("user{number}"), number, &[]);
        }
        host.run();
        host
    }

    fn add(&mut self, name: &str, number: u32, groups: &[&str]) {
        self.roster.users.push(User {
            name: linux(name),
            uid: uid(number),
            gid: Gid(uid(number).0),
            gecos: name.to_owned(),
            home: format!("/home/{name}"),
            shell: "/bin/bash".to_owned(),
        });
        for group in self.roster.groups.iter_mut().filter(|group| groups.contains(&group.name.as_str())) {
            group.members.push(linux(name));
        }
    }

    fn leave(&mut self, name: &str) -> User {
        let at = self.roster.users.iter().position(|user| user.name.as_str() == name).unwrap();
        for group in &mut self.roster.groups {
            group.members.retain(|member| member.as_str() != name);
        }
        self.roster.users.remove(at)
    }

    fn plan(&self) -> Plan {
        let Self { roster, config, state, tables, force, adopted, others } = self;
        plan(&PlanInput { roster, config, state, adopted, force: *force, today: 20_000, others }, tables)
    }

    /// Makes one whole run, with all sessions ended and all homes cleared.
    fn run(&mut self) -> Plan {
        if self.roster.complete {
            let present: BTreeSet<Uid> = self.roster.users.iter().map(|user| user.uid).collect();
            let adopted = self.adopted.clone();
            let listed = |uid: Uid| {
                let mut names = adopted.iter().filter(|(_, known)| *known == uid).map(|(name, _)| name);
                names.any(|name| self.roster.adopted.iter().any(|adopted| adopted.as_str() == name))
            };
            let managed =
                managed_accounts(&self.tables).into_keys().chain(self.adopted.iter().map(|(_, uid)| *uid));
            self.state.count(managed, |uid| present.contains(&uid) || listed(uid));
        }
        let mut first = self.plan();
        self.tables = std::mem::take(&mut first.tables);
        self.state.locked.clone_from(&first.former_expiry);
        self.state.joined.clone_from(&first.joined);
        self.state.groups.extend(self.roster.groups.iter().map(|group| group.name.to_string()));
        if !first.remove.is_empty() {
            for removal in &first.remove {
                self.tables.remove_account(&removal.account.name, removal.account.uid.0);
            }
            let second = self.plan();
            self.tables = second.tables;
            self.state.locked = second.former_expiry;
        }
        first
    }

    fn passwd(&self, name: &str) -> Option<String> {
        self.tables.passwd.get(name).map(|row| row.join(":"))
    }

    fn shadow(&self, name: &str) -> Option<String> {
        self.tables.shadow.as_ref().unwrap().get(name).map(|row| row.join(":"))
    }

    fn members(&self, group: &str) -> String {
        let row = self.tables.group.get(group).unwrap();
        let shadow = self.tables.gshadow.as_ref().unwrap().get(group).unwrap();
        assert_eq!(row.get(3), shadow.get(3), "group and gshadow agree about {group}");
        row.get(3).unwrap().clone()
    }

    fn locked(&self) -> usize {
        self.tables.passwd.rows().filter(|row| row.get(SHELL).is_some_and(|shell| shell == NOLOGIN)).count()
    }
}

#[test]
fn accounts_are_created_as_nss_would_show_them_and_others_stay() {
    let mut host = Host::new("");
    host.add("alice", 1, &["iam-users"]);
    host.add("first.last", 2, &["iam-users", "iam-sudo", "docker"]);
    host.run();
    let (one, two) = (FIRST + 1, FIRST + 2);
    assert_eq!(
        text(&host.tables.passwd),
        format!(
            "{PASSWD}alice:x:{one}:{one}:alice:/home/alice:/bin/bash\n\
                 first.last:x:{two}:{two}:first.last:/home/first.last:/bin/bash\n"
        )
    );
    assert_eq!(
        text(host.tables.shadow.as_ref().unwrap()),
        format!("{SHADOW}alice:*:20000::::::\nfirst.last:*:20000::::::\n")
    );
    assert_eq!(host.members("iam-users"), "alice,first.last");
    assert_eq!(host.members("iam-sudo"), "first.last");
    assert_eq!(host.members("docker"), "ec2-user,aduser,first.last");
    assert_eq!(host.tables.group.get("alice").unwrap().join(":"), format!("alice:x:{one}:"));
}

#[test]
fn a_second_run_changes_nothing() {
    let mut host = Host::with_users("", 20);
    let again = host.plan();
    assert_eq!((again.changes, &again.tables), (Vec::new(), &host.tables));
    host.run();
    assert_eq!(host.plan().changes, []);
}

#[test]
fn an_interrupted_run_is_completed() {
    let whole = {
        let mut host = Host::new("");
        host.add("alice", 1, &["iam-users", "docker"]);
        host.run();
        host.tables
    };
    // The files are renamed in this order: group, gshadow, shadow, passwd.
    for put in 0..4 {
        let mut host = Host::new("");
        host.add("alice", 1, &["iam-users", "docker"]);
        host.tables.group = whole.group.clone();
        if put > 0 {
            host.tables.gshadow = whole.gshadow.clone();
        }
        if put > 1 {
            host.tables.shadow = whole.shadow.clone();
        }
        host.run();
        assert_eq!(host.passwd("alice"), whole.passwd.get("alice").map(|row| row.join(":")), "{put}");
        assert_eq!(host.shadow("alice"), Some("alice:*:20000::::::".into()), "{put}");
        assert_eq!(host.plan().changes, [], "{put}");
    }
}

#[test]
fn a_user_missing_twice_in_a_row_is_locked_and_unlocked_when_back() {
    let mut host = Host::with_users("", 3);
    let gone = host.leave("user1");
    let first = host.run();
    assert_eq!((first.changes, first.waiting), (vec![], vec![("user1".to_owned(), 1)]));
    assert_eq!(host.run().changes, [Change::Lock { name: "user1".into() }]);
    let one = FIRST + 1;
    assert_eq!(
        host.passwd("user1"),
        Some(format!("user1:x:{one}:{one}:user1:/home/user1:/usr/sbin/nologin"))
    );
    assert_eq!(host.shadow("user1"), Some("user1:*:20000:::::1:".into()));
    let again = host.run();
    assert_eq!((again.changes, again.locked.len()), (vec![], 1), "sessions are ended in each run");
    assert!(host.members("iam-users").contains("user1"), "sshd's rule about keys applies to locked users");

    host.roster.users.push(gone);
    assert_eq!(host.run().changes, [Change::Unlock { name: "user1".into() }]);
    assert_eq!(host.shadow("user1"), Some("user1:*:20000::::::".into()));
    assert_eq!(host.locked(), 0);
}

#[test]
fn an_account_locked_as_usermod_suggests_stays_locked() {
    // As `usermod -L -e 1 -s /usr/sbin/nologin` does it.
    let mut host = Host::with_users("", 3);
    host.tables.passwd.get_mut("user1").unwrap()[SHELL] = NOLOGIN.to_owned();
    host.tables.shadow.as_mut().unwrap().get_mut("user1").unwrap()[EXPIRY] = EXPIRED.to_owned();
    let before = (host.passwd("user1"), host.shadow("user1"));
    for _ in 0..3 {
        assert_eq!(host.run().changes, []);
    }
    assert_eq!((host.passwd("user1"), host.shadow("user1")), before);
}

#[test]
fn a_user_who_was_back_is_counted_from_zero() {
    let mut host = Host::with_users("", 3);
    for _ in 0..3 {
        let gone = host.leave("user1");
        assert_eq!(host.run().changes, []);
        host.roster.users.push(gone);
        assert_eq!(host.run().changes, []);
    }
}

#[test]
fn an_incomplete_list_retires_nobody() {
    let mut host = Host::new("");
    host.add("alice", 1, &["iam-users", "docker"]);
    host.run();
    let mut alice = host.leave("alice");
    host.roster.complete = false;
    host.add("bob", 2, &["iam-users"]);
    for _ in 0..5 {
        host.run();
    }
    assert!(host.passwd("alice").unwrap().ends_with("/bin/bash") && host.members("docker").contains("alice"));
    assert!(host.passwd("bob").is_some(), "accounts are still created");
    // Missing often enough before, but this list is incomplete.
    host.roster.complete = true;
    host.run();
    host.roster.complete = false;
    alice.shell = "/bin/sh".into();
    host.run();
    host.run();
    assert_eq!(host.locked(), 0);
}

#[test]
fn no_run_retires_more_than_its_share() {
    for (users, gone, retired) in
        [(50, 10, 10), (50, 11, 0), (5, 3, 3), (5, 4, 0), (1000, 200, 200), (1000, 201, 0)]
    {
        let mut host = Host::with_users("", users);
        for number in 0..gone {
            host.leave(&format!("user{number}"));
        }
        host.run();
        let plan = host.run();
        assert_eq!(host.locked(), retired, "{gone} of {users}");
        let told = plan.refused.iter().any(|refusal| refusal.why.contains("iam-importer --force"));
        assert_eq!(told, retired == 0);
        host.force = true;
        host.run();
        assert_eq!(host.locked(), gone as usize, "with --force");
    }
}

#[test]
fn locked_accounts_do_not_count_towards_the_limit() {
    let mut host = Host::with_users("[importer]\nmax_retire = '50%'", 10);
    for number in 0..5 {
        host.leave(&format!("user{number}"));
    }
    host.run();
    host.run();
    assert_eq!(host.locked(), 5);
    // 5 are left, of which 3 may be retired, not half of the 10 that there were.
    for number in 5..9 {
        host.leave(&format!("user{number}"));
    }
    host.run();
    host.run();
    assert_eq!(host.locked(), 5);
}

#[test]
fn archive_and_delete_remove_the_account() {
    for (retire, home_action) in [("archive", HomeAction::Archive), ("delete", HomeAction::Delete)] {
        let mut host = Host::with_users(&format!("[importer]\nretire = '{retire}'"), 3);
        host.leave("user1");
        host.run();
        let plan = host.run();
        let account = Account { name: "user1".into(), uid: uid(1) };
        let removal = Removal { account: account.clone(), home: "/home/user1".into(), home_action };
        assert_eq!((plan.remove, plan.locked), (vec![removal], vec![account]));
        assert_eq!((host.passwd("user1"), host.shadow("user1")), (None, None));
        assert!(host.tables.group.get("user1").is_none() && !host.members("iam-users").contains("user1"));
        assert_eq!(host.run().changes, []);
    }
}

#[test]
fn a_recreated_user_gets_an_account_when_the_old_one_is_removed() {
    let mut host = Host::with_users("", 5);
    host.leave("user1");
    host.add("user1", 77, &[]);
    let first = host.run();
    assert!(first.refused.iter().any(|refusal| refusal.why.contains("belongs to an earlier IAM user")));
    assert!(host.passwd("user1").unwrap().contains(&uid(1).to_string()));
    let second = host.run();
    assert_eq!(
        second.remove.iter().map(|removal| removal.home_action).collect::<Vec<_>>(),
        [HomeAction::Stays]
    );
    let new = uid(77);
    assert_eq!(host.passwd("user1"), Some(format!("user1:x:{new}:{new}:user1:/home/user1:/bin/bash")));
    assert_eq!(host.run().changes, []);
}

#[test]
fn a_renamed_user_keeps_the_account() {
    let mut host = Host::new("");
    host.add("alice", 1, &["iam-users", "docker"]);
    host.add("bob", 2, &["iam-users"]);
    host.run();
    // They exchange their names.
    let (mut alice, mut bob) = (host.leave("alice"), host.leave("bob"));
    std::mem::swap(&mut alice.name, &mut bob.name);
    host.roster.users = vec![alice, bob];
    host.roster.groups[2].members = vec![linux("alice"), linux("bob")];
    host.roster.groups[0].members = vec![linux("bob")];
    host.run();
    assert!(host.passwd("bob").unwrap().starts_with(&format!("bob:x:{}:", uid(1))));
    assert!(host.passwd("alice").unwrap().starts_with(&format!("alice:x:{}:", uid(2))));
    assert_eq!(host.members("docker"), "ec2-user,aduser,bob");
    assert_eq!(host.plan().changes, []);
}

#[test]
fn a_user_whose_name_or_uid_another_directory_has_gets_no_account() {
    let mut host = Host::with_users("", 3);
    host.run();
    let (carol, dave) = (host.roster.users[0].clone(), host.roster.users[1].clone());
    let users = [
        User { name: linux("carol"), uid: uid(8), ..carol },
        User { name: linux("dave"), uid: uid(9), ..dave },
    ];
    host.roster.users.extend(users);
    host.others = Directories::with(
        &[("carol", Elsewhere::Name), ("dave", Elsewhere::Uid), ("erin", Elsewhere::Unknown)],
        &["user0", "user1", "user2"],
    );
    let plan = host.run();
    assert_eq!(plan.changes, [], "existing accounts stay");
    let whys: Vec<&str> = plan.refused.iter().map(|refused| refused.why.as_str()).collect();
    assert_eq!(
        whys,
        [
            "its name is that of an account of another directory",
            "its uid is that of an account of another directory"
        ]
    );
    // Renamed to a name that the other directory has.
    host.roster.users[2].name = linux("erin");
    assert!(host.run().changes.is_empty());
}

#[test]
fn a_local_account_is_never_touched() {
    let mut host = Host::with_users("[importer]\nretire = 'delete'", 1);
    host.add("ec2-user", 10, &["iam-users", "iam-sudo"]);
    host.add("root", 11, &["iam-users", "iam-sudo"]);
    host.force = true;
    for _ in 0..3 {
        let plan = host.run();
        assert!(
            ["ec2-user", "root"].iter().all(|name| plan.refused.iter().any(|refusal| refusal.who == *name))
        );
        host.roster.users.retain(|user| user.name.as_str() != "user0");
    }
    assert_eq!(text(&host.tables.passwd), PASSWD);
    assert_eq!(text(host.tables.shadow.as_ref().unwrap()), SHADOW);
    assert_eq!((host.members("docker"), host.members("iam-sudo")), ("ec2-user,aduser".into(), String::new()));
}

#[test]
fn an_adopted_account_gets_groups_and_is_locked_but_never_removed() {
    let mut host = Host::with_users("[importer]\nretire = 'delete'", 5);
    host.adopted = vec![("jonathan".into(), Uid(1001))];
    host.roster.adopted = vec![linux("jonathan")];
    for group in &mut host.roster.groups {
        group.members.push(linux("jonathan"));
    }
    host.run();
    assert_eq!(host.members("iam-sudo"), "jonathan");
    assert_eq!(host.passwd("jonathan"), Some("jonathan:x:1001:1001::/home/jonathan:/bin/zsh".into()));
    host.roster.adopted.clear();
    for group in &mut host.roster.groups {
        group.members.retain(|member| member.as_str() != "jonathan");
    }
    host.run();
    let plan = host.run();
    assert_eq!((plan.remove, plan.locked.len()), (vec![], 1));
    assert_eq!(
        host.passwd("jonathan"),
        Some("jonathan:x:1001:1001::/home/jonathan:/bin/zsh".into()),
        "its shell included"
    );
    assert_eq!(host.shadow("jonathan"), Some("jonathan:$6$x:1:0:99999:7::1:".into()));
    assert_eq!(host.members("iam-sudo"), "");
    assert!(host.members("iam-users").contains("jonathan"), "sshd's rule about keys still applies");
    host.roster.adopted = vec![linux("jonathan")];
    host.run();
    assert_eq!(host.shadow("jonathan"), Some("jonathan:$6$x:1:0:99999:7::20999:".into()), "as it was");
}

#[test]
fn an_expired_account_without_a_record_stays_locked() {
    let mut host = Host::with_users("", 1);
    let shadow = host.tables.shadow.as_mut().unwrap();
    *shadow.get_mut("user0").unwrap() = "user0:!*:20000:::::1:".split(':').map(str::to_owned).collect();
    assert_eq!(host.run().changes, []);
}

#[test]
fn an_adopted_account_that_an_administrator_has_locked_stays_locked() {
    let mut host = Host::new("");
    *host.tables.passwd.get_mut("jonathan").unwrap().get_mut(SHELL).unwrap() = NOLOGIN.into();
    let shadow = host.tables.shadow.as_mut().unwrap();
    *shadow.get_mut("jonathan").unwrap() = "jonathan:!*:20000:::::1:".split(':').map(str::to_owned).collect();
    host.roster.adopted = vec![linux("jonathan")];
    host.run();
    assert_eq!(host.shadow("jonathan"), Some("jonathan:!*:20000:::::1:".into()));
    assert_eq!(host.run().changes, []);
}

#[test]
fn groups_follow_iam_and_the_configuration() {
    let mut host = Host::new("");
    host.add("alice", 1, &["iam-users", "iam-sudo", "docker"]);
    host.run();
    host.roster.groups.iter_mut().find(|group| group.name.as_str() == "iam-sudo").unwrap().members.clear();
    assert_eq!(host.run().changes, [Change::Leave { name: "alice".into(), group: "iam-sudo".into() }]);
    // The configuration no longer maps anything to docker.
    host.roster.groups.retain(|group| group.name.as_str() != "docker");
    assert_eq!(host.run().changes, [Change::Leave { name: "alice".into(), group: "docker".into() }]);
    assert_eq!(host.members("docker"), "ec2-user,aduser");
}

#[test]
fn refusals_of_the_roster_are_reported() {
    let mut host = Host::with_users("", 1);
    host.roster.refused = vec![Refused {
        iam_name: "12345".into(),
        name: None,
        uid: uid(5),
        why: "its Linux name is all digits".into(),
    }];
    assert_eq!(
        host.run().refused.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["12345: its Linux name is all digits"]
    );
}

#[test]
fn without_shadow_files_accounts_have_no_password_either() {
    let mut host = Host::new("");
    (host.tables.shadow, host.tables.gshadow) = (None, None);
    host.add("alice", 1, &["iam-users"]);
    host.run();
    assert!(host.passwd("alice").unwrap().starts_with("alice:*:"));
    host.add("bob", 2, &["iam-users"]);
    host.leave("alice");
    host.run();
    host.run();
    assert!(host.passwd("alice").unwrap().ends_with(NOLOGIN));
    host.add("alice", 1, &["iam-users"]);
    assert!(host.run().changes.contains(&Change::Unlock { name: "alice".into() }));
}

#[test]
fn five_thousand_users_are_planned_in_one_run() {
    let host = Host::with_users("", 5000);
    assert_eq!(managed_accounts(&host.tables).len(), 5000);
    assert_eq!(host.plan().changes.len(), 0);
}

/// Returns the files as a run leaves them that is killed when it has renamed `put` of the four.
fn cut_off(before: &Tables, after: &Tables, put: usize) -> Tables {
    let mut tables = before.clone();
    let all: [&dyn Fn(&mut Tables); 4] = [
        &|tables| tables.group = after.group.clone(),
        &|tables| tables.gshadow = after.gshadow.clone(),
        &|tables| tables.shadow = after.shadow.clone(),
        &|tables| tables.passwd = after.passwd.clone(),
    ];
    all.iter().take(put).for_each(|put| put(&mut tables));
    tables
}

#[test]
fn an_interrupted_renaming_is_completed() {
    for names in [["alicia", "bob"], ["bob", "alice"], ["bob", "robert"]] {
        let before = || {
            let mut host = Host::new("");
            host.add("alice", 1, &["iam-users", "docker"]);
            host.add("bob", 2, &["iam-users"]);
            host.run();
            let (mut alice, mut bob) = (host.leave("alice"), host.leave("bob"));
            (alice.name, bob.name) = (linux(names[0]), linux(names[1]));
            host.roster.users = vec![alice, bob];
            host.roster.groups[2].members = names.map(linux).to_vec();
            host.roster.groups[0].members = vec![linux(names[0])];
            host
        };
        let mut whole = before();
        let old = whole.tables.clone();
        whole.run();
        for put in 0..4 {
            let mut host = before();
            host.tables = cut_off(&old, &whole.tables, put);
            host.run();
            for (number, name) in [(1, names[0]), (2, names[1])] {
                assert!(
                    host.passwd(name).unwrap().starts_with(&format!("{name}:x:{}:", uid(number))),
                    "{names:?} {put}"
                );
                assert!(host.shadow(name).is_some(), "{names:?} {put}");
            }
            assert_eq!(managed_accounts(&host.tables).len(), 2, "{names:?} {put}");
            assert_eq!(host.members("docker"), whole.members("docker"), "{names:?} {put}");
            assert_eq!(host.plan().changes, [], "{names:?} {put}");
        }
    }
}

#[test]
fn an_account_that_cannot_be_renamed_blocks_those_that_need_its_name() {
    let mut host = Host::new("");
    for (number, name) in ["alice", "bob", "carol"].iter().enumerate() {
        host.add(name, u32::try_from(number).unwrap(), &[]);
    }
    host.run();
    // carol is missing, and not yet retired; bob is called carol now, and alice bob.
    let (mut alice, mut bob) = (host.leave("alice"), host.leave("bob"));
    host.leave("carol");
    (alice.name, bob.name) = (linux("bob"), linux("carol"));
    host.roster.users = vec![alice, bob];
    let plan = host.run();
    assert_eq!(plan.refused.len(), 2, "{:?}", plan.refused);
    let names: BTreeSet<&String> = host.tables.passwd.rows().filter_map(|row| row.first()).collect();
    assert_eq!(names.len(), host.tables.passwd.rows().count(), "no name twice");
    host.run();
    host.run();
    assert!(host.passwd("carol").unwrap().contains(&uid(1).to_string()));
    assert!(host.passwd("bob").unwrap().contains(&uid(0).to_string()));
}

#[test]
fn groups_of_a_new_user_are_not_given_to_the_old_account_of_the_name() {
    let mut host = Host::with_users("", 5);
    host.leave("user1");
    host.add("user1", 77, &["docker", "iam-sudo"]);
    host.run();
    assert_eq!((host.members("docker"), host.members("iam-sudo")), ("ec2-user,aduser".into(), String::new()));
    host.run();
    assert_eq!(host.members("iam-sudo"), "user1");
}

#[test]
fn an_account_that_is_no_longer_adopted_loses_its_groups() {
    let mut host = Host::with_users("", 1);
    host.adopted = vec![("jonathan".into(), Uid(1001))];
    host.roster.adopted = vec![linux("jonathan")];
    for group in &mut host.roster.groups {
        group.members.push(linux("jonathan"));
    }
    host.run();
    assert!(host.members("docker").contains("jonathan"));
    host.adopted.clear();
    host.roster.adopted.clear();
    for group in &mut host.roster.groups {
        group.members.retain(|member| member.as_str() != "jonathan");
    }
    host.run();
    for group in ["docker", "iam-sudo", "iam-users"] {
        assert!(!host.members(group).contains("jonathan"), "{group}");
    }
    assert!(host.members("docker").contains("aduser"), "the importer did not add it");
}

#[test]
fn an_interrupted_lock_is_completed_and_keeps_the_former_date() {
    let mut host = Host::with_users("", 5);
    host.adopted = vec![("jonathan".into(), Uid(1001))];
    host.run();
    // Saved, and not done.
    host.state.count([Uid(1001)], |_| false);
    host.state.count([Uid(1001)], |_| false);
    let plan = host.plan();
    assert!(plan.changes.contains(&Change::Lock { name: "jonathan".into() }));
    host.state.locked = plan.former_expiry;
    let again = host.plan();
    assert!(again.changes.contains(&Change::Lock { name: "jonathan".into() }), "it is still to be done");
    host.run();
    host.roster.adopted = vec![linux("jonathan")];
    host.run();
    assert_eq!(host.shadow("jonathan"), Some("jonathan:$6$x:1:0:99999:7::20999:".into()));

    // A managed account: expired, but still with its shell, when its user comes back.
    let shadow = host.tables.shadow.as_mut().unwrap();
    *shadow.get_mut("user0").unwrap().get_mut(EXPIRY).unwrap() = "1".into();
    host.state.locked.insert("user0".into(), "20500".into());
    host.run();
    assert_eq!(host.shadow("user0"), Some("user0:*:20000:::::20500:".into()));
}

#[test]
fn accounts_that_cannot_be_removed_do_not_keep_others_from_being_locked() {
    let mut host = Host::with_users("[importer]\nretire = 'delete'", 10);
    let uids: Vec<Uid> = (0..10).map(uid).collect();
    for number in 0..3 {
        host.leave(&format!("user{number}"));
    }
    for _ in 0..2 {
        host.state.count(uids.clone(), |known| known.0 >= uid(3).0);
    }
    // Their homes cannot be cleared: in each run nobody is removed.
    for _ in 0..3 {
        let mut plan = host.plan();
        host.tables = std::mem::take(&mut plan.tables);
        assert_eq!((plan.remove.len(), plan.limit), (3, 3));
    }
    for number in 3..6 {
        host.leave(&format!("user{number}"));
    }
    for _ in 0..2 {
        host.state.count(uids.clone(), |known| known.0 >= uid(6).0);
    }
    let plan = host.plan();
    assert_eq!(plan.changes.iter().filter(|change| matches!(change, Change::Lock { .. })).count(), 3);
    assert_eq!((plan.remove.len(), plan.limit), (6, 3), "and no more than the limit is removed at once");
}

#[test]
fn a_listed_user_loses_a_group_by_an_incomplete_list_too() {
    let mut host = Host::new("");
    host.add("alice", 1, &["iam-users", "docker"]);
    host.run();
    host.roster.complete = false;
    host.roster.groups[0].members.clear();
    host.run();
    assert_eq!(host.members("docker"), "ec2-user,aduser");
}

#[test]
fn a_group_whose_members_differ_in_the_two_files_is_repaired() {
    let mut host = Host::new("");
    host.add("alice", 1, &["iam-users", "docker"]);
    host.run();
    let before = host.tables.clone();
    host.roster.groups[0].members.clear();
    host.run();
    let after = host.tables.clone();
    host.tables = cut_off(&before, &after, 1);
    host.run();
    assert_eq!(host.members("docker"), "ec2-user,aduser", "and gshadow agrees");
}

#[test]
fn an_account_without_a_shell_by_an_administrator_stays_without() {
    let mut host = Host::with_users("", 1);
    *host.tables.passwd.get_mut("user0").unwrap().get_mut(SHELL).unwrap() = NOLOGIN.into();
    assert_eq!(host.run().changes, []);
}

#[test]
fn a_home_directory_is_not_moved() {
    let mut host = Host::with_users("", 1);
    host.roster.users[0].home = "/srv/user0".into();
    assert_eq!(host.run().changes, []);
}

#[test]
fn with_an_instance_tag_as_rule_no_home_is_removed() {
    let mut host = Host::with_users("[importer]\nretire = 'delete'", 3);
    host.config.access.allow =
        Config::parse("[access]\nallow = { tag = 'x', within = ['*'] }", Path::new("c"))
            .unwrap()
            .access
            .allow;
    host.leave("user1");
    host.run();
    let plan = host.run();
    assert_eq!((plan.remove, host.locked()), (vec![], 1));
}
