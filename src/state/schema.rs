//! What stored state is: how it is laid out, in which version, and of which types.
//!
//! A state's *version* is what the user declares, from 1 on; only the user knows when the meaning of
//! a type has changed. Its *types* are found here: names and sizes of key and value. They catch a
//! version that somebody forgot to declare, as far as names and sizes tell types apart: fields that
//! changed places within a type of the same name are not seen.
//!
//! Invariants
//! - The word of version 1 is the number of its layout.
//! - [`Declared::refusal`] is a question about names and numbers only: it is asked before anything is
//!   read or changed.

use std::any::type_name;
use std::fmt;

use rkyv::Archive;
use serde::{Deserialize, Serialize};

/// Highest version of a state.
pub const VERSION_MAX: u32 = 1 << 24;

/// Bits of the word for the layout; the others are the version's.
const LAYOUT_BITS: u32 = 8;

/// How state is kept, in memory and on disk.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Pages of plain keys and values.
    Pages = 1,
    /// Pages of byte-string keys and plain values.
    BytePages = 2,
    /// Entries of archived keys and values.
    Entries = 3,
    /// One archived value.
    Value = 4,
    /// Records that were in transit.
    Log = 5,
}

impl Layout {
    fn of(number: u32) -> Option<Self> {
        let all = [Self::Pages, Self::BytePages, Self::Entries, Self::Value, Self::Log];
        all.into_iter().find(|layout| *layout as u32 == number)
    }
}

/// Layout and version: the word that is stored beside every piece and every list of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schema {
    /// How it is laid out.
    pub layout: Layout,
    /// The user's version of it, from 1 to [`VERSION_MAX`].
    pub version: u32,
}

impl Schema {
    /// Both as one word.
    #[must_use]
    pub const fn word(self) -> u32 {
        assert!(self.version >= 1 && self.version <= VERSION_MAX, "no version of a state");
        (self.version - 1) << LAYOUT_BITS | self.layout as u32
    }

    /// Both out of a word; `None` if its layout is none that is known.
    #[must_use]
    pub fn of(word: u32) -> Option<Self> {
        let layout = Layout::of(word & ((1 << LAYOUT_BITS) - 1))?;
        Some(Self { layout, version: (word >> LAYOUT_BITS) + 1 })
    }
}

/// What tells a type from others.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct TypeName {
    /// Its name, without the modules it is in: so it may move.
    pub name: String,
    /// Size of its archive, without what that points to.
    pub bytes: usize,
}

impl TypeName {
    /// Of a type.
    #[must_use]
    pub fn of<T: Archive>() -> Self {
        Self { name: without_modules(type_name::<T>()), bytes: size_of::<T::Archived>() }
    }
}

impl fmt::Display for TypeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.name, self.bytes)
    }
}

/// A type's name without the path before each name in it. Where the compiler puts a type of the
/// standard library is its own business, and where users put theirs is theirs.
fn without_modules(path: &str) -> String {
    let mut name = String::with_capacity(path.len());
    let mut last = 0;
    let mut letters = path.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == ':' && letters.next_if_eq(&':').is_some() {
            name.truncate(last);
            continue;
        }
        name.push(letter);
        if !(letter.is_alphanumeric() || "_{}#".contains(letter)) {
            last = name.len();
        }
    }
    name
}

/// What keyed state is made of: the id of its schema.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct StateTypes {
    /// How it is kept.
    pub layout: Layout,
    /// What it is kept by.
    pub key: TypeName,
    /// What is kept.
    pub value: TypeName,
}

impl StateTypes {
    /// Whether state of these types can be read as `other`. The name of the value does not count: who
    /// changes a type often keeps the old one under another name.
    fn reads_as(&self, other: &Self) -> bool {
        self.layout == other.layout
            && self.key == other.key
            && self.value.bytes == other.value.bytes
    }
}

impl fmt::Display for StateTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layout = match self.layout {
            Layout::Pages => "pages",
            Layout::BytePages => "byte pages",
            Layout::Entries => "entries",
            Layout::Value => "value",
            Layout::Log => "log",
        };
        write!(f, "{} -> {}, {layout}", self.key, self.value)
    }
}

/// What an operator declares of its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// The version it writes.
    pub version: u32,
    /// What that is made of.
    pub types: StateTypes,
    /// Older versions that it can read, and what those are made of.
    pub older: Vec<(u32, StateTypes)>,
}

/// Why stored state is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Of a later version than is known.
    Newer,
    /// Why, and what to do.
    Unfit(String),
}

impl Declared {
    /// What is wrong with the declaration itself.
    ///
    /// # Errors
    /// In words.
    pub fn check(&self) -> Result<(), String> {
        let Self { version, older, .. } = self;
        if !(1..=VERSION_MAX).contains(version) {
            return Err(format!("declares schema {version}; it must be 1 to {VERSION_MAX}"));
        }
        for (at, (from, _)) in older.iter().enumerate() {
            if *from == 0 || from >= version {
                return Err(format!(
                    "migrates from version {from} to {version}; it must be from an earlier one, and \
                     the first is 1: declare the version it has now with `.schema(..)`"
                ));
            }
            if older[..at].iter().any(|(before, _)| before == from) {
                return Err(format!("migrates from version {from} in two ways"));
            }
        }
        Ok(())
    }

    /// Why state of this version and these types, where they are known, is not taken; `None` if it is.
    #[must_use]
    pub fn refusal(&self, version: u32, types: Option<&StateTypes>) -> Option<Refusal> {
        if version > self.version {
            return Some(Refusal::Newer);
        }
        let unfit = |reason| Some(Refusal::Unfit(reason));
        let older = self.older.iter().find(|(from, _)| *from == version);
        let (expected, reads) = match older {
            _ if version == self.version => (&self.types, types.is_none_or(|t| *t == self.types)),
            Some((_, old)) => (old, types.is_none_or(|types| types.reads_as(old))),
            None => {
                let found = types.map_or(String::new(), |types| format!(" ({types})"));
                return unfit(format!(
                    "has version {version}{found}, this job's is {} ({}) and it knows no way there; \
                     add `.migrate({version}, |old| ..)` behind `.schema({})`, or go on with the \
                     program that wrote it",
                    self.version, self.types, self.version
                ));
            }
        };
        let found = types.filter(|_| !reads)?;
        if version == self.version {
            let next = version + 1;
            return unfit(format!(
                "has version {version} of {found}, this job's version {version} is of {expected}; \
                 declare the changed type with `.schema({next})` and turn what was into what is with \
                 `.migrate({version}, |old| ..)`, or go on with the program that wrote it"
            ));
        }
        unfit(format!(
            "has version {version} of {found}, which cannot be read as the {expected} that this job \
             migrates from version {version}; give `.migrate({version}, |old| ..)` the type it had, \
             or go on with the program that wrote it"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::KeyedTable;

    #[test]
    fn layout_and_version_are_one_word_and_the_first_version_is_the_layout_alone() {
        for (layout, version, word) in [
            (Layout::Pages, 1, 1),
            (Layout::Log, 1, 5),
            (Layout::Entries, 2, 0x103),
            (Layout::Value, VERSION_MAX, 0xFFFF_FF04),
        ] {
            let schema = Schema { layout, version };
            assert_eq!((schema.word(), Schema::of(word)), (word, Some(schema)));
        }
        assert_eq!((Schema::of(0), Schema::of(0x106)), (None, None));
    }

    #[test]
    fn a_type_may_move_between_modules_but_not_change_its_name_or_size() {
        for (path, name) in [
            ("u64", "u64"),
            ("alloc::string::String", "String"),
            ("(u64, alloc::vec::Vec<a_job::old::Count>)", "(u64, Vec<Count>)"),
            ("[[job::main::{{closure}}::Point; 3]; 2]", "[[Point; 3]; 2]"),
            ("a::B<c::D<e::F>, g::H>", "B<D<F>, H>"),
        ] {
            assert_eq!(without_modules(path), name);
        }
        assert_eq!(TypeName::of::<(u32, String)>().to_string(), "(u32, String) (12 bytes)");
        assert_ne!(TypeName::of::<u64>(), TypeName::of::<f64>());
    }

    fn declared(version: u32, older: &[u32]) -> Declared {
        let old = KeyedTable::<u64, u64>::types();
        let older = older.iter().map(|from| (*from, old.clone())).collect();
        Declared { version, types: KeyedTable::<u64, String>::types(), older }
    }

    #[test]
    fn versions_begin_at_1_and_a_migration_leads_from_an_earlier_one_once() {
        for good in [declared(1, &[]), declared(VERSION_MAX, &[]), declared(3, &[2, 1])] {
            assert_eq!(good.check(), Ok(()));
        }
        let wrong = |declared: Declared| declared.check().unwrap_err();
        assert!(wrong(declared(0, &[])).contains("declares schema 0; it must be 1 to"));
        assert!(wrong(declared(VERSION_MAX + 1, &[])).contains("it must be 1 to"));
        assert!(wrong(declared(1, &[1])).contains("must be from an earlier one"));
        assert!(wrong(declared(2, &[0])).contains("the first is 1"));
        assert!(wrong(declared(3, &[1, 2, 1])).contains("from version 1 in two ways"));
    }

    #[test]
    fn what_is_known_is_taken_and_anything_else_refused_with_what_to_do() {
        let (old, new) = (KeyedTable::<u64, u64>::types(), KeyedTable::<u64, String>::types());
        let job = declared(3, &[1]);
        assert_eq!(job.refusal(3, Some(&new)), None);
        assert_eq!(job.refusal(1, Some(&old)), None);
        assert_eq!(job.refusal(1, None), None, "written before types were noted");
        assert_eq!(job.refusal(4, Some(&new)), Some(Refusal::Newer));
        let words = |version, types| match job.refusal(version, Some(types)) {
            Some(Refusal::Unfit(reason)) => reason,
            other => panic!("{other:?}"),
        };
        let reason = words(2, &old);
        assert!(
            reason.contains("has version 2 (u64 (8 bytes) -> u64 (8 bytes), pages)"),
            "{reason}"
        );
        assert!(reason.contains("add `.migrate(2, |old| ..)` behind `.schema(3)`"), "{reason}");
        let reason = words(3, &old);
        assert!(reason.contains("this job's version 3 is of u64 (8 bytes) -> String"), "{reason}");
        assert!(reason.contains("`.schema(4)`") && reason.contains("`.migrate(3, "), "{reason}");
        let reason = words(1, &new);
        assert!(reason.contains("cannot be read as the u64 (8 bytes) -> u64"), "{reason}");
    }

    #[test]
    fn an_old_type_may_be_renamed_but_a_key_may_not_change() {
        let job = declared(2, &[1]);
        let mut renamed = KeyedTable::<u64, u64>::types();
        renamed.value.name = "Count".into();
        assert_eq!(job.refusal(1, Some(&renamed)), None);
        assert!(job.refusal(1, Some(&KeyedTable::<i64, u64>::types())).is_some());
    }
}
