//! The one table of checks: which kernel functions to hook for each, and what it tells.
//!
//! The hook plan, the coverage report and the trail in the output are read from
//! [`TABLE`]. Sources: kernel/fork.c `kernel_clone` and `copy_process`, 5.10 to 7.2.

mod table;

use std::collections::HashSet;

use pgfork_trace_common::Check;
use schemars::JsonSchema;
use serde::Serialize;

pub use table::TABLE;

use super::{
    btf::{Btf, BtfError},
    functions::{Class, Prototype},
};

/// How refusals are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// fentry and fexit programs.
    Fexit,
    /// kprobe and kretprobe programs.
    Kprobe,
    /// The return of the process's own `fork`; then the state is read.
    Tracepoint,
}

impl Method {
    /// The name used on the command line and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fexit => "fexit",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
        }
    }
}

/// Expected parameter of a hooked function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// Any integer, bool or enum.
    Int,
    /// Pointer to this struct.
    To(&'static str),
    /// Pointer to anything.
    Pointer,
    /// Flags: an integer, a pointer, or a struct that takes one register.
    Flags,
}

/// When the programs of a check are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Always: free for everyone who is not in the middle of a watched fork.
    Base,
    /// Where memory is promised strictly, and with each of the others: a hot path, where the two
    /// other modes of vm.overcommit_memory refuse nothing but what exceeds RAM and swap.
    Strict,
    /// For some minutes after an ENOMEM that the base set does not explain: hot paths.
    Armed,
    /// With `--all-children`: what running processes ask for.
    Requests,
}

/// Expected result of a hooked function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returns {
    /// An integer; negative is an error.
    Int,
    /// `bool`.
    Bool,
    /// A pointer.
    Pointer,
    /// Anything: the result is not looked at.
    Any,
}

/// A kernel function of a known prototype, with the programs that hook it.
#[derive(Clone, Copy, Debug)]
pub struct Alternative {
    /// Kernel function.
    pub function: &'static str,
    /// Expected parameters.
    pub parameters: &'static [Parameter],
    /// Expected result.
    pub returns: Returns,
    /// fentry program, if any.
    pub fentry: Option<&'static str>,
    /// fexit program, if any.
    pub fexit: Option<&'static str>,
    /// kprobe program, if any.
    pub kprobe: Option<&'static str>,
    /// kretprobe program, if any.
    pub kretprobe: Option<&'static str>,
}

/// One row: a check and where it may be found.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The check.
    pub check: Check,
    /// Functions that lead to it, outermost first; several may be inlined.
    pub path: &'static [&'static str],
    /// Alternatives by kernel; the first whose prototype fits is taken.
    pub alternatives: &'static [Alternative],
    /// Nothing can be said about refused forks without it.
    pub essential: bool,
    /// Where the kernel lacks the function, or it returns nothing, there is no such check.
    pub newer: bool,
    /// When it is attached.
    pub group: Group,
}

impl Row {
    /// The function that names this check in output.
    #[must_use]
    pub fn function(&self) -> &'static str {
        self.alternatives
            .first()
            .map_or("?", |first| first.function)
    }
}

/// The row of a check.
#[must_use]
pub fn row(check: Check) -> &'static Row {
    // The table has a row for every check; a test holds it to that.
    TABLE
        .iter()
        .find(|row| row.check == check)
        .unwrap_or(&TABLE[0])
}

/// A check that can be hooked on this kernel.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// The check.
    pub check: Check,
    /// What to hook and with which programs.
    pub alternative: &'static Alternative,
    /// BTF id of the function; `None` when the BTF does not have it.
    pub btf_id: Option<u32>,
}

/// A check that cannot be hooked on this kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotSeen {
    /// The check.
    pub check: Check,
    /// Why, in words for people.
    pub why: String,
}

/// Which checks of [`TABLE`] this kernel offers.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In the order of the table.
    pub hooks: Vec<Hook>,
    /// The rest.
    pub not_seen: Vec<NotSeen>,
}

impl Plan {
    /// Function names of the whole table, to look up in BTF and symbols.
    #[must_use]
    pub fn functions() -> HashSet<&'static str> {
        TABLE
            .iter()
            .flat_map(|row| row.alternatives)
            .map(|alternative| alternative.function)
            .collect()
    }

    /// Chooses for each check the alternative whose prototype fits the kernel's BTF.
    ///
    /// # Errors
    /// When the BTF cannot be read.
    pub fn choose(btf: &Btf) -> Result<Self, BtfError> {
        let mut plan = Self::default();
        for row in TABLE {
            let mut offered = Vec::new();
            for alternative in row.alternatives {
                offered = btf.prototypes(alternative.function)?;
                if let Some(prototype) = offered
                    .first()
                    .filter(|_| offered.iter().all(|it| fits(alternative, it)))
                {
                    plan.hooks.push(Hook {
                        check: row.check,
                        alternative,
                        btf_id: Some(prototype.id),
                    });
                    break;
                }
            }
            let found = plan
                .hooks
                .last()
                .is_some_and(|hook| hook.check == row.check);
            let no_such_check = row.newer && offered.iter().all(|it| it.result == Class::Void);
            if !found && !no_such_check {
                plan.not_seen.push(NotSeen {
                    check: row.check,
                    why: why_not(row, &offered),
                });
            }
        }
        Ok(plan)
    }
}

fn why_not(row: &Row, offered: &[Prototype]) -> String {
    match offered.first() {
        None => format!("this kernel has no function {}", row.function()),
        Some(prototype) => format!("{} has another prototype here: {prototype}", row.function()),
    }
}

/// Whether the kernel's function is the one that the programs were written for.
fn fits(alternative: &Alternative, prototype: &Prototype) -> bool {
    let result_fits = match (alternative.returns, &prototype.result) {
        (Returns::Int, Class::Scalar(bytes)) => *bytes >= 4,
        (Returns::Bool, Class::Scalar(bytes)) => *bytes == 1,
        (Returns::Pointer, Class::Pointer(_)) | (Returns::Any, _) => true,
        _ => false,
    };
    result_fits
        && alternative.parameters.len() == prototype.parameters.len()
        && alternative
            .parameters
            .iter()
            .zip(&prototype.parameters)
            .all(|(expected, actual)| match (expected, actual) {
                (Parameter::Int, Class::Scalar(_)) | (Parameter::Pointer, Class::Pointer(_)) => {
                    true
                }
                (Parameter::To(name), Class::Pointer(actual)) => name == actual,
                (Parameter::Flags, Class::Scalar(_) | Class::Pointer(_)) => true,
                (Parameter::Flags, Class::Value(bytes)) => *bytes <= 8,
                _ => false,
            })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_one_row_for_each_check_in_order() {
        let checks: Vec<Check> = TABLE.iter().map(|row| row.check).collect();
        assert_eq!(checks, Check::ALL);
        for row in TABLE {
            assert!(!row.alternatives.is_empty());
            for alternative in row.alternatives {
                assert!(alternative.fentry.is_some() || alternative.fexit.is_some());
                assert!(alternative.kprobe.is_some() || alternative.kretprobe.is_some());
            }
        }
    }

    fn prototype(result: Class, parameters: Vec<Class>) -> Prototype {
        Prototype {
            id: 1,
            result,
            parameters,
        }
    }

    #[test]
    fn a_namesake_with_another_prototype_does_not_fit() {
        let creds = &row(Check::CopyCreds).alternatives[0];
        let task = || Class::Pointer("task_struct".to_owned());
        assert!(fits(
            creds,
            &prototype(Class::Scalar(4), vec![task(), Class::Scalar(8)])
        ));
        assert!(
            !fits(creds, &prototype(Class::Void, vec![])),
            "the mm_init trap of 5.10"
        );
        assert!(!fits(creds, &prototype(Class::Scalar(4), vec![task()])));
        assert!(!fits(
            creds,
            &prototype(
                Class::Scalar(4),
                vec![Class::Pointer("cred".to_owned()), Class::Scalar(8)]
            )
        ));
        assert!(!fits(
            creds,
            &prototype(Class::Void, vec![task(), Class::Scalar(8)])
        ));
    }

    #[test]
    fn results_of_another_width_do_not_fit() {
        let overlimit = &row(Check::IsRlimitOverlimit).alternatives[0];
        let parameters = || {
            vec![
                Class::Pointer("ucounts".to_owned()),
                Class::Scalar(4),
                Class::Scalar(8),
            ]
        };
        assert!(fits(overlimit, &prototype(Class::Scalar(1), parameters())));
        assert!(!fits(overlimit, &prototype(Class::Scalar(4), parameters())));
    }
}
