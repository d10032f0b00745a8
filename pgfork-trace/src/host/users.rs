//! Users and groups of the host's own files. Directories (LDAP) are not asked.

use std::path::Path;

use super::Root;
use super::read::config as read_file;

/// Longest file that is read, in bytes.
const FILE_LIMIT: u64 = 1 << 20;

/// A line of /etc/passwd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its primary group.
    pub gid: u32,
    /// Its home directory.
    pub home: String,
}

/// The first user with this uid.
#[must_use]
pub fn by_uid(root: &Root, uid: u32) -> Option<User> {
    content(root, "/etc/passwd").lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, number, gid, _, home, ..] = fields.as_slice() else {
            return None;
        };
        (number.parse() == Ok(uid)).then_some(())?;
        Some(User {
            name: (*name).to_owned(),
            gid: gid.parse().ok()?,
            home: (*home).to_owned(),
        })
    })
}

/// Groups that a user is in: name and gid.
#[must_use]
pub fn groups_of(root: &Root, user: &User) -> Vec<(String, u32)> {
    let text = content(root, "/etc/group");
    let groups = text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid: u32 = fields.nth(1)?.parse().ok()?;
        let mut members = fields.next()?.split(',');
        let is_in = gid == user.gid || members.any(|member| member.trim() == user.name);
        is_in.then(|| (name.to_owned(), gid))
    });
    groups.collect()
}

fn content(root: &Root, file: &str) -> String {
    let content = read_file(&root.join(Path::new(file)), FILE_LIMIT).unwrap_or_default();
    String::from_utf8_lossy(&content).into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeRoot;
    use super::*;

    #[test]
    fn a_user_and_its_groups() {
        let fake = FakeRoot::new();
        fake.write(
            "etc/passwd",
            "root:x:0:0::/root:/bin/sh\nodd\npg:x:26:27::/home/pg:/bin/sh\n",
        );
        fake.write(
            "etc/group",
            "root:x:0:\npg:x:27:\ndba:x:30:x,pg\nodd\nother:x:31:pgx\n",
        );
        let user = by_uid(fake.root(), 26).unwrap();
        assert_eq!((user.name.as_str(), user.home.as_str()), ("pg", "/home/pg"));
        assert_eq!(
            groups_of(fake.root(), &user),
            [("pg".to_owned(), 27), ("dba".to_owned(), 30)]
        );
        assert_eq!(by_uid(fake.root(), 7), None);
    }
}
