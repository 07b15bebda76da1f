//! State that changes from one release of a job to the next: its version, and ways from older ones.
//!
//! The ways are a list of types, so that the compiler checks that each leads to the state of the
//! operator that follows.

use std::marker::PhantomData;

use super::KeyedStream;
use crate::key::Key;
use crate::operator::keyed::Select;
use crate::record::{Data, Record};
use crate::state::Migration;

/// Ways from older versions of a state to values of type `V`.
pub trait Migrations<K: Key, V: Data>: Clone + 'static {
    /// For one task.
    fn list(&self) -> Vec<Migration<K, V>>;
}

/// No way: a state of which there is one version, or whose older ones are forgotten.
#[derive(Clone, Copy, Debug)]
pub struct Unmigrated;

impl<K: Key, V: Data> Migrations<K, V> for Unmigrated {
    fn list(&self) -> Vec<Migration<K, V>> {
        Vec::new()
    }
}

/// The ways `M`, and one from values of type `O`.
#[derive(Clone)]
pub struct Migrated<M, O, F> {
    others: M,
    from: u32,
    convert: F,
    old: PhantomData<fn(O)>,
}

impl<M, O, F, K, V> Migrations<K, V> for Migrated<M, O, F>
where
    M: Migrations<K, V>,
    O: Data,
    F: FnMut(O) -> V + Clone + Send + 'static,
    K: Key,
    V: Data,
{
    fn list(&self) -> Vec<Migration<K, V>> {
        let mut list = self.others.list();
        list.push(Migration::new(self.from, self.convert.clone()));
        list
    }
}

impl<T: Record, S: Select<T>, M> KeyedStream<T, S, M> {
    /// The state of the operator that follows is of this version, from 1 (the default) to
    /// [`VERSION_MAX`](crate::state::VERSION_MAX): raise it by one whenever the type of the state or the
    /// meaning of its values changes.
    ///
    /// A snapshot with a version or types that the job does not know is refused when the job is
    /// opened: by the name of the operator, before a record is read and before anything is changed.
    /// [`migrate`](Self::migrate) makes an older version known.
    ///
    /// ```
    /// # use rkyv::{Archive, Deserialize, Serialize};
    /// # use tidegate::{config::Config, operator::{sink::Collect, source::Items}, stream::Job};
    /// // In the first release the state was the number of words alone, a `u64`.
    /// #[derive(Clone, Default, Archive, Serialize, Deserialize)]
    /// struct Lengths {
    ///     words: u64,
    ///     letters: u64,
    /// }
    ///
    /// let job = Job::new("lengths");
    /// let (sink, results) = Collect::new();
    /// let words = || ["to", "be", "or", "not"].map(String::from).into_iter();
    /// job.source("words", Items::new("four words", words))
    ///     .key_by(|word| word.len() as u64)
    ///     .schema(2)
    ///     .migrate(1, |words: u64| Lengths { words, letters: 0 })
    ///     .aggregate(
    ///         "count",
    ///         Lengths::default,
    ///         |state, word| {
    ///             state.words += 1;
    ///             state.letters += word.len() as u64;
    ///         },
    ///         |_, state| state.letters,
    ///     )
    ///     .sink("out", sink);
    /// job.run(&Config::workers(1))?;
    /// # let mut letters = results.take();
    /// # letters.sort();
    /// # assert_eq!(letters, [2, 3, 4, 6]);
    /// # Ok::<(), tidegate::error::Error>(())
    /// ```
    #[must_use]
    pub fn schema(self, version: u32) -> Self {
        Self { version, ..self }
    }

    /// Values of version `from`, which were of type `O`, become this version's by `convert`; keys stay
    /// as they are. For more than one older version it is called once for each.
    ///
    /// The type may have another name than it had, but its archive must be as it was: keep a copy of
    /// the old declaration. All state of the operator is read, converted and held in memory before
    /// the first record is read, by one thread, and the first snapshot after that writes all of it:
    /// the cost of a restart, once, goes with its size.
    ///
    /// The older snapshots stay as they are until newer ones take their place; from then on the program
    /// of before cannot go on from the directory.
    #[must_use]
    pub fn migrate<O: Data, V: Data, F: FnMut(O) -> V + Clone + Send + 'static>(
        self,
        from: u32,
        convert: F,
    ) -> KeyedStream<T, S, Migrated<M, O, F>> {
        let Self { stream, select, version, migrations } = self;
        let migrations = Migrated { others: migrations, from, convert, old: PhantomData };
        KeyedStream { stream, select, version, migrations }
    }
}
