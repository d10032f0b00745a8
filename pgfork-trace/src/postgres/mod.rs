//! Facts about PostgreSQL: which processes are postmasters, and which of them are meant.

pub mod control_file;
pub mod discover;
pub mod fork_log;
pub mod lock_file;
mod log_line;
pub mod roles;
pub mod select;
pub mod server_log;
pub mod settings;
pub mod titles;

pub use control_file::{ControlFile, Unusable};
pub use discover::{
    Candidate, Discovery, Identity, Postmaster, Skipped, Why, discover, identify, presumed,
    starting,
};
pub use lock_file::LockFile;
pub use roles::{Described, Role, describe};
pub use select::{Filter, SelectError, Target, select};
pub use server_log::{LogCounts, foreign_messages, server_log};
pub use settings::{Setting, Settings, settings};
pub use titles::{Client, Kind, Title};
