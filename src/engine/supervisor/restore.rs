//! Making the workers of an attempt: the plan, the tasks, and what they knew in the snapshot.
//!
//! Invariants
//! - Sinks recover before writers exist; state is restored before a record is read.
//! - Every piece of state in the snapshot is taken by a task, or the restore fails.

use super::*;

/// Inside the snapshot directory.
const SPILL_DIRECTORY: &str = "spill";

/// Takes the directory for spilled records for this process.
fn lock_spill(disk: &dyn Disk, directory: &Path) -> Result<DiskLock> {
    let refuse = |reason: String| Error::Config {
        setting: "spill directory".into(),
        value: directory.display().to_string(),
        reason,
    };
    let remedy = "name another one, or turn spilling off";
    let locked = disk.create_dir_all(directory).and_then(|()| disk.lock(&directory.join("LOCK")));
    let locked = locked.map_err(|error| refuse(format!("it cannot be used: {error}; {remedy}")))?;
    locked.ok_or_else(|| refuse(format!("another running process uses it; {remedy}")))
}

impl Supervisor<'_> {
    /// The workers of a new attempt, restored.
    pub(super) fn workers(
        &mut self,
        now_ns: u64,
        notice: &mut dyn FnMut(Notice<'_>),
    ) -> Result<Vec<Worker>> {
        self.attempt = Attempt(self.attempt.0 + 1);
        let first = self.store.as_ref().map_or(SnapshotId(1), Store::next_snapshot);
        let first = first.max(self.coordinator.next_snapshot());
        let entries = self.newest.is_some().then(|| self.load()).transpose()?;
        self.recover_sinks(entries.as_deref())?;
        self.plan_for(entries.as_deref().unwrap_or_default());
        let instance = Instance {
            disk: self.disk.clone(),
            attempt: self.attempt,
            captured: SnapshotId(first.0 - 1),
            transactional: self.config.snapshots.is_some(),
            mode: self.config.snapshots.as_ref().map_or(Mode::Abs, |snapshots| snapshots.mode),
            spill: self.spill()?,
            records: self.handle.records.clone(),
        };
        let mut tasks = self.plan.instantiate(self.graph, &instance)?;
        if let Some(entries) = &entries {
            self.restore(&mut tasks, entries)?;
            let id = self.newest.as_ref().map_or(SnapshotId(0), Manifest::id);
            notice(Notice::Restored(id));
        }
        tasks.iter_mut().flatten().for_each(Task::start);
        self.proven_from = None;
        self.coordinator.start(self.attempt, self.plan.tasks.len(), first, now_ns);
        self.commands.clear();
        let mut workers = Vec::new();
        for (index, tasks) in tasks.into_iter().enumerate() {
            let (sender, receiver) = channel();
            let id = WorkerId(index);
            let store = self.store.as_ref();
            let parts = store.map(|store| store.writer(id, self.attempt)).transpose()?;
            let events = self.events.0.clone();
            workers.push(Worker::new((id, self.attempt), tasks, parts, receiver, events));
            self.commands.push(sender);
        }
        Ok(workers)
    }

    /// Plans anew so that every log in `entries` has a task that begins with its operator.
    fn plan_for(&mut self, entries: &[StateEntry]) {
        let logged = |name: &str| {
            let log = format!("{name}{LOG_SUFFIX}");
            entries.iter().any(|entry| entry.operator == log)
        };
        let operators = self.graph.operators.iter().enumerate();
        let heads =
            operators.filter(|(_, operator)| logged(&operator.name)).map(|(index, _)| index);
        let heads: Vec<_> = heads.collect();
        let Config { workers, ring_slots, .. } = self.config;
        self.plan = Plan::with_heads(self.graph, workers, ring_slots, &heads);
    }

    /// Where records may be set aside, cleared of what a process that was killed has left. A
    /// directory of its own is locked for the run, and so tried out before it is needed.
    fn spill(&mut self) -> Result<Spill> {
        let mut spill = self.config.spill.clone();
        if let Some(directory) = spill.directory.as_ref().filter(|_| self.spill_lock.is_none()) {
            self.spill_lock = Some(lock_spill(&*self.disk, directory)?);
        }
        let own = self.config.snapshots.as_ref().map(|s| s.directory.join(SPILL_DIRECTORY));
        spill.directory = spill.directory.or(own).filter(|_| spill.disk_bytes > 0);
        if let Some(directory) = &spill.directory {
            remove_leftovers(&*self.disk, directory)?;
        }
        Ok(spill)
    }

    pub(super) fn load(&self) -> Result<Vec<StateEntry>> {
        let (Some(store), Some(newest)) = (&self.store, &self.newest) else {
            return Ok(Vec::new());
        };
        store.load(newest)
    }

    pub(super) fn recover_sinks(&mut self, entries: Option<&[StateEntry]>) -> Result<()> {
        for (index, operator) in self.graph.operators.iter().enumerate() {
            let Build::Stage { sink: Some(sink), .. } = &operator.build else { continue };
            let handles = entries.map(|entries| {
                let mine = entries.iter().filter(|entry| entry.operator == operator.name);
                mine.map(|entry| entry.bytes.clone()).collect::<Vec<_>>()
            });
            if !self.claims.contains_key(&index) {
                let owner = self.owner_of(&operator.name);
                let claim = sink.claim(&owner, handles.as_deref(), &*self.disk)?;
                self.claims.insert(index, claim);
            }
            sink.recover(handles.as_deref(), &*self.disk)?;
        }
        Ok(())
    }

    /// Whose output a sink writes: that of a job which can go on from its snapshots.
    fn owner_of(&self, operator: &str) -> String {
        let Some(snapshots) = &self.config.snapshots else { return NOBODY.into() };
        let directory = std::path::absolute(&snapshots.directory);
        let directory = directory.unwrap_or_else(|_| snapshots.directory.clone());
        let (job, directory) = (&self.identity.name, directory.to_string_lossy());
        format!("operator '{operator}' of job '{job}' with snapshots in {directory}")
            .replace('\n', " ")
    }

    /// Gives each piece of state to the tasks that own it now.
    fn restore(&self, tasks: &mut [Vec<Task>], entries: &[StateEntry]) -> Result<()> {
        // Operator name -> (worker, place in the worker, subtask) of its tasks.
        let mut homes: BTreeMap<&str, Vec<(usize, usize, usize)>> = BTreeMap::new();
        let mut places = vec![0; self.plan.workers];
        for planned in &self.plan.tasks {
            let worker = planned.worker.0;
            for operator in self.plan.chain(self.graph, planned.head) {
                let home = (worker, places[worker], planned.subtask);
                homes.entry(&self.graph.operators[operator].name).or_default().push(home);
            }
            places[worker] += 1;
        }
        for StateEntry { operator, slot, schema, bytes } in entries {
            let user = operator.split('#').next().unwrap_or(operator);
            let homes = homes.get(user).ok_or_else(|| Error::State {
                operator: operator.clone(),
                reason: "the job has no such operator".into(),
            })?;
            let mut taken = false;
            for &(worker, place, subtask) in homes {
                let owns = match slot {
                    StateSlot::KeyGroup(group) => group.owner(homes.len()) == subtask,
                    StateSlot::Split(split) => *split as usize % homes.len() == subtask,
                    StateSlot::Task(_) => true,
                };
                if owns {
                    taken |= tasks[worker][place].restore(operator, *slot, *schema, bytes)?;
                }
            }
            if !taken {
                return Err(Error::State {
                    operator: operator.clone(),
                    reason: format!("no task of the job takes its {slot:?}"),
                });
            }
        }
        Ok(())
    }
}
