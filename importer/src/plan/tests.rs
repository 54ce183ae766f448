use super::*;
use crate::table::Table;
use pam_iam_core::id::{FIRST, Gid};
use pam_iam_core::name::LinuxName;
use pam_iam_core::wire::{Group, Refused};
use std::path::Path;

mod groups;
mod interrupted;
mod retiring;

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

    /// Makes one whole run in which all sessions end and all homes are cleared.
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
    // A user is renamed to a name that another directory has.
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

/// Returns the files that a run leaves if it is killed after it has renamed `put` of the four.
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
