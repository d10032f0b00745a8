//! What the running server was started with, where its files may say something else by now.

use std::time::{Duration, SystemTime};

use crate::{
    gather::text,
    host::{Root, uptime},
    postgres::{ControlFile, Postmaster, Setting, Settings, Unusable},
    verdict::{findings::FileSetting, headroom::Written},
};

/// What pg_control tells, with the default
/// (src/backend/utils/misc/guc.c, from 16 on guc_tables.c; PostgreSQL 10 to 18).
const TOLD: [(&str, u64); 4] = [
    ("max_connections", 100),
    ("max_worker_processes", 8),
    ("max_wal_senders", 10),
    ("max_prepared_transactions", 0),
];
/// Times of files and of processes come from different clocks.
const DOUBT: Duration = Duration::from_secs(2);

/// Where to learn it.
#[derive(Debug)]
pub(super) struct InForce {
    control: Result<ControlFile, Unusable>,
    /// When the server started.
    started: Option<SystemTime>,
}

impl InForce {
    pub(super) fn read(root: &Root, postmaster: &Postmaster) -> Self {
        let age = uptime(root).ok().flatten().map(|it| postmaster.age(it));
        Self {
            control: ControlFile::read(root, postmaster),
            started: age.and_then(|age| SystemTime::now().checked_sub(age)),
        }
    }

    /// The number in force; where only the files tell, theirs, or `default`.
    pub(super) fn number(&self, settings: &Settings, name: &str, default: u64) -> Option<u64> {
        self.told(name).or_else(|| settings.number(name, default))
    }

    fn told(&self, name: &str) -> Option<u64> {
        self.control.as_ref().ok()?.setting(name)
    }

    /// The number in force, where the files have another.
    pub(super) fn other(&self, settings: &Settings, name: &str) -> Option<u64> {
        let (_, default) = TOLD.iter().find(|(told, _)| *told == name)?;
        let now = self.told(name)?;
        let setting = settings.set.get(name);
        // What the server was started with cannot be changed.
        let given = setting.is_some_and(|setting| setting.file.is_none());
        let written = settings.number(name, *default)?;
        (written != now && !given).then_some(now)
    }

    /// Settings that change when the server is restarted.
    pub(super) fn pending(&self, settings: &Settings) -> Vec<FileSetting> {
        let changed = TOLD.iter().filter_map(|(name, default)| {
            let now = self.other(settings, name)?;
            let setting = settings.set.get(*name);
            Some(FileSetting {
                key: (*name).to_owned(),
                value: setting.map_or_else(|| default.to_string(), |it| it.value.clone()),
                place: setting.and_then(place).unwrap_or_default(),
                now: Some(now.to_string()),
            })
        });
        changed.collect()
    }

    /// The file that sets it, where that was changed after the server started and nothing tells what
    /// is in force.
    pub(super) fn newer(&self, settings: &Settings, name: &str) -> Option<String> {
        if self.told(name).is_some() {
            return None;
        }
        let setting = settings.set.get(name)?;
        let newer = setting.modified? > self.started?.checked_add(DOUBT)?;
        let file = setting.file.as_ref()?;
        newer.then(|| text(file.as_os_str()))
    }

    /// What is to be said of the number of max_connections.
    pub(super) fn max_connections(&self, settings: &Settings) -> Written {
        let name = "max_connections";
        let mut pending = self.pending(settings).into_iter();
        let pending = pending.find(|it| it.key == name);
        if let Some((setting, number)) = pending.zip(settings.number(name, 100)) {
            let written = setting.written();
            return Written::Pending { number, written };
        }
        match (self.newer(settings, name), &self.control) {
            (Some(file), Err(why)) => Written::Unsure {
                file,
                why: why.to_string(),
            },
            _ => Written::InForce,
        }
    }
}

fn place(setting: &Setting) -> Option<String> {
    let file = setting.file.as_ref()?;
    Some(format!("{}:{}", text(file.as_os_str()), setting.line))
}
