//! Making the workers of an attempt: the plan, the tasks, and what they knew in the snapshot.
//!
//! Invariants
//! - Sinks recover before writers exist; state is restored before a record is read.
//! - Every piece of state in the snapshot is taken by a task, or the restore fails.
//! - State of an older version is turned into this job's before a record is read.

use super::*;

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
        let loaded = self.newest.is_some().then(|| self.load()).transpose()?;
        let pieces = loaded.as_ref().map(|loaded| &loaded.pieces[..]);
        self.recover_sinks(pieces)?;
        let restored = self.newest.as_ref();
        self.unread_since =
            restored.map(|restored| restored.unread_since.unwrap_or(restored.snapshot));
        self.plan_for(pieces.unwrap_or_default());
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
        if let Some(loaded) = &loaded {
            refuse_larger_than_memory(loaded)?;
            let newest = self.newest.as_ref().expect("it was loaded");
            schema::refuse_other_records(self.graph, newest, &loaded.pieces)?;
            // What fails to be read from here on is the snapshot's.
            self.loading = (0..self.config.workers).map(WorkerId).collect();
            self.restore(&mut tasks, loaded)?;
            tasks.iter_mut().flatten().try_for_each(Task::migrate)?;
            self.loading.clear();
            notice(Notice::Restored(newest.id()));
        }
        tasks.iter_mut().flatten().try_for_each(Task::start)?;
        self.proven_from = None;
        self.coordinator.start(self.attempt, self.plan.tasks.len(), first, now_ns);
        self.commands.clear();
        self.handovers.clear();
        let mut workers = Vec::new();
        for (index, tasks) in tasks.into_iter().enumerate() {
            let (sender, receiver) = channel();
            let id = WorkerId(index);
            let store = self.store.as_ref();
            let parts = store.map(Store::writer).transpose()?;
            let handover = Arc::new(Handover::new(instance.captured));
            self.handovers.push(handover.clone());
            let parts = parts.map(|parts| (parts, handover));
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
        let own = self.config.snapshots.as_ref().map(|s| s.directory.join(SPILL));
        spill.directory = spill.directory.or(own).filter(|_| spill.disk_bytes > 0);
        if let Some(directory) = &spill.directory {
            remove_leftovers(&*self.disk, directory)?;
        }
        Ok(spill)
    }

    /// What the newest snapshot holds.
    pub(super) fn load(&mut self) -> Result<Loaded> {
        let newest = self.newest.as_ref().expect("there is a snapshot");
        self.store.as_mut().expect("it is in a directory").load(newest)
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
                let claim = guard::named(&operator.name, 0, || {
                    sink.claim(&owner, handles.as_deref(), &*self.disk)
                })?;
                self.claims.insert(index, claim);
            }
            guard::named(&operator.name, 0, || sink.recover(handles.as_deref(), &*self.disk))?;
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

    /// Gives each piece of state, and the pages of each table, to the tasks that own them now.
    fn restore(&self, tasks: &mut [Vec<Task>], loaded: &Loaded) -> Result<()> {
        let homes = self.homes();
        let homes_of = |operator: &String| {
            let user = operator.split('#').next().unwrap_or(operator);
            homes.get(user).ok_or_else(|| Error::State {
                operator: operator.clone(),
                reason: "the job has no such operator".into(),
            })
        };
        let refuse = |operator: &String, what: String| Error::State {
            operator: operator.clone(),
            reason: format!("no task of the job takes its {what}"),
        };
        for StateEntry { operator, slot, schema, bytes } in &loaded.pieces {
            let mut taken = false;
            let homes = homes_of(operator)?;
            for home in homes {
                let owns = match slot {
                    StateSlot::KeyGroup(group) => group.owner(homes.len()) == home.subtask,
                    StateSlot::Split(split) => *split as usize % homes.len() == home.subtask,
                    StateSlot::Task(_) => true,
                };
                if owns {
                    let task = &mut tasks[home.worker][home.place];
                    taken |= task.restore(operator, *slot, *schema, bytes)?;
                }
            }
            if !taken {
                return Err(refuse(operator, format!("{slot:?}")));
            }
        }
        for (operator, schema, pages) in &loaded.pages {
            let mut taken = false;
            for home in homes_of(operator)? {
                let task = &mut tasks[home.worker][home.place];
                taken |= task.restore_pages(operator, *schema, pages, &loaded.source)?;
            }
            if !taken {
                return Err(refuse(operator, "pages".into()));
            }
        }
        Ok(())
    }

    /// Where the tasks of each operator are.
    fn homes(&self) -> BTreeMap<&str, Vec<Home>> {
        let mut homes: BTreeMap<&str, Vec<Home>> = BTreeMap::new();
        let mut places = vec![0; self.plan.workers];
        for planned in &self.plan.tasks {
            let (worker, subtask) = (planned.worker.0, planned.subtask);
            for operator in self.plan.chain(self.graph, planned.head) {
                let home = Home { worker, place: places[worker], subtask };
                homes.entry(&self.graph.operators[operator].name).or_default().push(home);
            }
            places[worker] += 1;
        }
        homes
    }
}

/// Where a task is: on which worker, at which place there, and which of its operator's tasks it is.
struct Home {
    worker: usize,
    place: usize,
    subtask: usize,
}

/// State that memory has no room for is refused before any of it is read.
fn refuse_larger_than_memory(loaded: &Loaded) -> Result<()> {
    let pages = loaded.pages.iter().flat_map(|(_, _, pages)| pages);
    let state = pages.map(|page| u64::from(page.bytes)).sum();
    memory::available_bytes().and_then(|bytes| memory::too_large(state, bytes)).map_or(Ok(()), Err)
}
