//! The ring against a `VecDeque`, and two threads against each other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::{CONTROLS_MAX, Consumer, Polled, Producer, channel};
use crate::id::SnapshotId;
use crate::record::Control;

/// A record that counts its drops.
struct Counted {
    value: usize,
    drops: Arc<AtomicUsize>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.drops.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// As many as fit of this many, one by one.
    Push(usize),
    /// As many as the room last seen takes of this many.
    Fill(usize),
    Publish,
    Control,
    /// Ask for at most so many, take at most so many of them.
    Poll {
        max: usize,
        take: usize,
    },
    /// Forget the loan instead of ending it.
    Forget,
    DropProducer,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1..6_usize).prop_map(Step::Push),
        4 => (0..12_usize).prop_map(Step::Fill),
        4 => Just(Step::Publish),
        2 => Just(Step::Control),
        8 => (1..9_usize, 0..9_usize).prop_map(|(max, take)| Step::Poll { max, take }),
        1 => Just(Step::Forget),
    ];
    (prop::collection::vec(step, 1..200), any::<bool>()).prop_map(|(mut steps, close)| {
        if close {
            steps.push(Step::DropProducer);
            steps.extend((0..20).map(|_| Step::Poll { max: 8, take: 8 }));
        }
        steps
    })
}

#[derive(Debug, PartialEq)]
enum Item {
    Record(usize),
    Control(Control),
}

/// What the ring should hold.
struct Model {
    capacity: usize,
    /// In order; the last `unpublished` are not visible yet.
    items: VecDeque<Item>,
    unpublished: usize,
    /// Slots that may still be held back: those of the records, and of forgotten loans until the
    /// consumer looks for more or takes more.
    held: usize,
    controls: usize,
    pushed: usize,
    leaked: usize,
}

impl Model {
    fn step(&mut self, step: &Step, ends: &mut Ends, drops: &Arc<AtomicUsize>) {
        match *step {
            Step::Push(wanted) => {
                let Some(producer) = &mut ends.producer else { return };
                let room = producer.room(wanted);
                let most = self.capacity - self.records();
                let least = self.capacity.saturating_sub(self.held);
                assert!(room <= most && room >= wanted.min(least), "{room} in {least}..={most}");
                for value in self.pushed..self.pushed + room.min(wanted) {
                    producer.push(Counted { value, drops: drops.clone() });
                }
                self.pushed(room.min(wanted));
            }
            Step::Fill(count) => {
                let Some(producer) = &mut ends.producer else { return };
                let room = producer.room(count.min(2));
                let values = self.pushed..self.pushed + count;
                let records = values.map(|value| Counted { value, drops: drops.clone() });
                assert_eq!(producer.fill(records), count.min(room));
                self.pushed(count.min(room));
            }
            Step::Publish => {
                let Some(producer) = &mut ends.producer else { return };
                assert_eq!(producer.publish(), self.unpublished > 0);
                self.unpublished = 0;
            }
            Step::Control => {
                let Some(producer) = &mut ends.producer else { return };
                let control = Control::Barrier(SnapshotId(self.pushed as u64));
                let put = producer.control(control);
                self.unpublished = 0;
                if self.controls == CONTROLS_MAX {
                    assert_eq!(put, Err(control));
                } else {
                    assert_eq!(put, Ok(()));
                    self.items.push_back(Item::Control(control));
                    self.controls += 1;
                }
            }
            Step::Poll { max, take } => self.poll(&mut ends.consumer, max, take, false),
            Step::Forget => self.poll(&mut ends.consumer, 2, 1, true),
            Step::DropProducer => {
                ends.producer = None;
                self.unpublished = 0;
            }
        }
        ends.closed = ends.producer.is_none();
        let visible = self.items.iter().take(self.items.len() - self.unpublished);
        let records = visible.clone().filter(|item| matches!(item, Item::Record(_))).count();
        assert_eq!(ends.consumer.len(), records);
        assert_eq!(ends.consumer.is_empty(), visible.count() == 0);
    }

    fn poll(&mut self, consumer: &mut Consumer<Counted>, max: usize, take: usize, forget: bool) {
        let visible = self.items.len() - self.unpublished;
        match consumer.poll(max) {
            Polled::Empty | Polled::Closed => {
                assert_eq!(visible, 0);
                self.held = self.records();
            }
            Polled::Control(control) => {
                assert!(visible > 0);
                assert_eq!(self.items.pop_front(), Some(Item::Control(control)));
                self.controls -= 1;
            }
            Polled::Records(mut lent) => {
                let count = lent.len();
                assert!(count > 0 && count <= max && count <= visible);
                for (item, record) in self.items.iter().zip(lent.as_slice()) {
                    assert_eq!(*item, Item::Record(record.value));
                }
                let taken = lent.drain(take).map(|record| record.value).collect::<Vec<_>>();
                for value in &taken {
                    assert_eq!(self.items.pop_front(), Some(Item::Record(*value)));
                }
                if forget {
                    self.items.drain(..count - taken.len());
                    self.leaked += count - taken.len();
                    std::mem::forget(lent);
                } else {
                    drop(lent);
                    if !taken.is_empty() {
                        self.held = self.records();
                    }
                }
            }
        }
    }

    fn pushed(&mut self, count: usize) {
        self.items.extend((self.pushed..self.pushed + count).map(Item::Record));
        self.pushed += count;
        self.held += count;
        self.unpublished += count;
    }

    fn records(&self) -> usize {
        self.items.iter().filter(|item| matches!(item, Item::Record(_))).count()
    }
}

struct Ends {
    producer: Option<Producer<Counted>>,
    consumer: Consumer<Counted>,
    closed: bool,
}

proptest! {
    // A failure prints its input; nothing is written beside the sources.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_interleaving_behaves_as_a_queue_that_drops_each_record_once(
        capacity in 1..9_usize,
        steps in steps(),
    ) {
        let drops = Arc::new(AtomicUsize::new(0));
        let (producer, consumer) = channel(capacity);
        let capacity = capacity.next_power_of_two();
        prop_assert_eq!(producer.capacity(), capacity);
        let mut ends = Ends { producer: Some(producer), consumer, closed: false };
        let mut model = Model {
            capacity,
            items: VecDeque::new(),
            unpublished: 0,
            held: 0,
            controls: 0,
            pushed: 0,
            leaked: 0,
        };
        for step in &steps {
            model.step(step, &mut ends, &drops);
        }
        if ends.closed && model.items.is_empty() {
            prop_assert!(matches!(ends.consumer.poll(1), Polled::Closed));
        }
        drop(ends);
        prop_assert_eq!(drops.load(Ordering::Relaxed), model.pushed - model.leaked);
    }
}

#[test]
fn a_full_ring_takes_a_barrier() {
    let (mut producer, mut consumer) = channel(1);
    producer.push(1);
    let barrier = Control::Barrier(SnapshotId(1));
    producer.control(barrier).unwrap();
    assert_eq!(producer.room(1), 0);
    let Polled::Records(mut records) = consumer.poll(9) else { panic!("no record") };
    assert_eq!(records.drain(9).collect::<Vec<_>>(), [1]);
    drop(records);
    assert!(matches!(consumer.poll(9), Polled::Control(control) if control == barrier));
    assert!(matches!(consumer.poll(9), Polled::Empty));
}

#[test]
fn a_barrier_waits_for_the_records_before_it_to_be_taken() {
    let (mut producer, mut consumer) = channel(4);
    producer.push(1);
    producer.push(2);
    producer.control(Control::End).unwrap();
    for left in [2, 1] {
        let Polled::Records(mut records) = consumer.poll(9) else { panic!("no records") };
        assert_eq!(records.len(), left);
        records.drain(1).for_each(drop);
    }
    assert!(matches!(consumer.poll(9), Polled::Control(Control::End)));
}

#[test]
#[should_panic(expected = "push without room")]
fn a_push_without_room_panics() {
    let (mut producer, _consumer) = channel(2);
    (0..3).for_each(|record| producer.push(record));
}

#[test]
fn a_fill_whose_records_panic_keeps_those_before() {
    let (mut producer, mut consumer) = channel(4);
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        producer.fill((0..4).inspect(|value| assert_ne!(*value, 2)).map(|value| value.to_string()))
    }));
    assert!(caught.is_err());
    producer.publish();
    let Polled::Records(mut records) = consumer.poll(9) else { panic!("no records") };
    assert_eq!(records.drain(9).collect::<Vec<_>>(), ["0", "1"]);
}

#[test]
fn a_panic_while_lent_releases_what_was_taken_and_keeps_the_rest() {
    let (mut producer, mut consumer) = channel(4);
    (0..4).for_each(|value| producer.push(value.to_string()));
    producer.publish();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let Polled::Records(mut records) = consumer.poll(9) else { panic!("no records") };
        records.drain(3).for_each(|record| assert_ne!(record, "1"));
    }));
    assert!(caught.is_err());
    assert_eq!(producer.room(4), 2);
    let Polled::Records(mut records) = consumer.poll(9) else { panic!("no records") };
    assert_eq!(records.drain(9).collect::<Vec<_>>(), ["2", "3"]);
}

/// The compiler refuses to exchange a batch for one of another life (see [`Batch`]); two loans that
/// live equally long it cannot tell apart.
///
/// [`Batch`]: crate::record::Batch
#[test]
fn batches_swapped_between_two_rings_neither_lose_nor_double_records() {
    let drops = Arc::new(AtomicUsize::new(0));
    let send = |producer: &mut Producer<Counted>, values: std::ops::Range<usize>| {
        assert!(producer.room(values.len()) >= values.len());
        values.for_each(|value| producer.push(Counted { value, drops: drops.clone() }));
        producer.publish();
    };
    let ((mut first, mut one), (mut second, mut other)) = (channel(4), channel(4));
    let mut seen = Vec::new();
    // Each round fills both rings, so it needs every slot of the last one back.
    for round in 0..3 {
        send(&mut first, round * 10..round * 10 + 4);
        send(&mut second, round * 10 + 5..round * 10 + 9);
        let (Polled::Records(mut lent), Polled::Records(mut strange)) =
            (one.poll(9), other.poll(9))
        else {
            panic!("no records")
        };
        std::mem::swap(&mut *lent, &mut *strange);
        if round == 1 {
            // Taken in part, and back in the right hands: what is left is next in order.
            seen.extend(lent.drain(1).map(|record| record.value));
            std::mem::swap(&mut *lent, &mut *strange);
            drop((lent, strange));
            for consumer in [&mut other, &mut one] {
                let Polled::Records(mut rest) = consumer.poll(9) else { panic!("no records") };
                seen.extend(rest.drain(9).map(|record| record.value));
            }
        } else {
            seen.extend(lent.drain(9).map(|record| record.value));
            seen.extend(strange.drain(9).map(|record| record.value));
            drop((lent, strange));
        }
        // The slots of a loan that came back with another batch are released by the next look.
        for consumer in [&mut one, &mut other] {
            assert!(matches!(consumer.poll(9), Polled::Empty));
        }
    }
    let rounds = [
        [5, 6, 7, 8, 0, 1, 2, 3],
        [15, 16, 17, 18, 10, 11, 12, 13],
        [25, 26, 27, 28, 20, 21, 22, 23],
    ];
    assert_eq!(seen, rounds.concat());
    drop((first, one, second, other));
    assert_eq!(drops.load(Ordering::Relaxed), seen.len());
}

#[test]
fn records_without_a_size_are_counted() {
    fn check<T: Send + Clone>(record: &T) {
        let (mut producer, mut consumer) = channel(4);
        for _ in 0..3 {
            assert_eq!(producer.room(3), 4);
            (0..2).for_each(|_| producer.push(record.clone()));
            assert_eq!(producer.fill([record.clone()]), 1);
            producer.publish();
            let mut count = 0;
            while let Polled::Records(mut records) = consumer.poll(9) {
                count += records.drain(9).count();
            }
            assert_eq!(count, 3);
        }
    }
    check(&());
    check::<[u64; 0]>(&[]);
}

#[test]
fn two_threads_see_all_records_and_marks_in_order() {
    const RECORDS: usize = 200_000;
    for capacity in [1, 2, 8, 1024] {
        let (mut producer, consumer) = channel(capacity);
        std::thread::scope(move |scope| {
            scope.spawn(move || {
                for value in 0..RECORDS / (1 + 9 * usize::from(capacity < 8)) {
                    while producer.room(1) == 0 {
                        producer.publish();
                        assert!(!producer.is_closed());
                        std::thread::yield_now();
                    }
                    producer.push(value.to_string());
                    if value % 7 == 0 {
                        producer.publish();
                    }
                    if value % 100 == 99 {
                        let barrier = Control::Barrier(SnapshotId(value as u64 + 1));
                        while producer.control(barrier).is_err() {
                            assert!(!producer.is_closed());
                            std::thread::yield_now();
                        }
                    }
                }
            });
            let (mut consumer, mut next) = (consumer, 0);
            loop {
                match consumer.poll(64) {
                    Polled::Empty => std::thread::yield_now(),
                    Polled::Closed => break,
                    Polled::Control(control) => {
                        assert_eq!(control, Control::Barrier(SnapshotId(next as u64)));
                    }
                    Polled::Records(mut records) => {
                        let count = records.len().div_ceil(2);
                        for record in records.drain(count) {
                            assert_eq!(record, next.to_string());
                            next += 1;
                        }
                    }
                }
            }
            assert_eq!(next, RECORDS / (1 + 9 * usize::from(capacity < 8)));
        });
    }
}

#[test]
fn a_mark_that_overtakes_takes_no_record_with_it_nor_the_marks_before_it() {
    let (mut sender, mut receiver) = channel::<String>(4);
    assert!(receiver.overtake(Control::End).is_none());
    let word = |n: u64| format!("record {n}");
    let (mut sent, mut taken) = (0, 0);
    for round in 0..20 {
        for _ in 0..round % 5 {
            if sender.room(1) > 0 {
                sender.push(word(sent));
                sent += 1;
            }
        }
        sender.publish();
        let barrier = Control::Barrier(SnapshotId(round));
        assert!(receiver.overtake(barrier).is_none(), "records, and no mark");
        // Those that are passed over stand before it, one of them with its own record between.
        let others = [1_000, 2_000].map(|n| Control::Barrier(SnapshotId(n + round)));
        sender.control(others[0]).unwrap();
        if sender.room(1) > 0 {
            sender.push(word(sent));
            sent += 1;
        }
        sender.control(others[1]).unwrap();
        sender.control(barrier).unwrap();
        let seen = receiver.overtake(barrier).expect("a mark").concat();
        assert_eq!(seen, (taken..sent).map(word).collect::<Vec<_>>());
        assert!(receiver.overtake(barrier).is_none(), "it is taken off");
        let mut passed = Vec::new();
        loop {
            match receiver.poll(3) {
                Polled::Records(mut records) => {
                    for record in records.drain(9) {
                        assert_eq!(record, word(taken));
                        taken += 1;
                    }
                }
                Polled::Control(control) => passed.push(control),
                Polled::Empty | Polled::Closed => break,
            }
        }
        assert_eq!((&passed[..], taken), (&others[..], sent));
    }
}

#[test]
fn marks_that_overtake_give_their_cells_back_while_every_record_stays() {
    let (mut sender, mut receiver) = channel::<u64>(2);
    sender.push(7);
    sender.control(Control::End).unwrap();
    for number in 1..4 * CONTROLS_MAX as u64 {
        let barrier = Control::Barrier(SnapshotId(number));
        sender.control(barrier).expect("room for a mark");
        assert_eq!(receiver.overtake(barrier).expect("a mark").concat(), [7]);
    }
    let Polled::Records(mut records) = receiver.poll(9) else { panic!("no record") };
    assert_eq!(records.drain(9).collect::<Vec<_>>(), [7]);
    drop(records);
    assert!(matches!(receiver.poll(9), Polled::Control(Control::End)));
    assert!(matches!(receiver.poll(9), Polled::Empty));
}
