//! The ring under every schedule and every reordering that the memory model allows, up to a bounded
//! number of preemptions. Each slot and each mark cell is tracked, so a missing Acquire or Release
//! shows as a data race even where this machine would not show it.
//!
//! ```text
//! cargo xtask model
//! ```
//!
//! Rings have one or two slots and there are two mark cells, so that a few records already wrap
//! around both.

use std::sync::Arc;

use ::loom::model::Builder;
use ::loom::thread;

use super::{Consumer, Polled, Producer, channel};
use crate::id::SnapshotId;
use crate::record::Control;

/// Schedules with more preemptions than this find nothing new here and take minutes.
const PREEMPTIONS_MAX: usize = 3;

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS_MAX);
    builder.check(check);
}

/// A record whose copies can be counted.
type Counted = (u64, Arc<()>);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Item {
    Record(u64),
    Control(Control),
}

const fn barrier(number: u64) -> Item {
    Item::Control(Control::Barrier(SnapshotId(number)))
}

/// Sends `items` as far as the other side reads them, `batch` records per publish.
fn send(producer: &mut Producer<Counted>, items: &[Item], batch: usize, probe: &Arc<()>) {
    for (sent, item) in items.iter().enumerate() {
        match *item {
            Item::Record(value) => {
                while producer.room(1) == 0 {
                    producer.publish();
                    if producer.is_closed() {
                        return;
                    }
                    thread::yield_now();
                }
                if batch == 1 {
                    producer.push((value, probe.clone()));
                } else {
                    assert_eq!(producer.fill([(value, probe.clone())]), 1);
                }
                if sent % batch == batch - 1 {
                    producer.publish();
                }
            }
            Item::Control(control) => {
                while producer.control(control).is_err() {
                    if producer.is_closed() {
                        return;
                    }
                    thread::yield_now();
                }
            }
        }
    }
}

/// Receives until the producer is gone, or until `limit` items are in.
fn receive(consumer: &mut Consumer<Counted>, max: usize, limit: usize) -> Vec<Item> {
    let mut items = Vec::new();
    while items.len() < limit {
        match consumer.poll(max) {
            Polled::Empty => thread::yield_now(),
            Polled::Closed => break,
            Polled::Control(control) => items.push(Item::Control(control)),
            Polled::Records(mut records) => {
                items.extend(records.drain(1).map(|record| Item::Record(record.0)));
            }
        }
    }
    items
}

/// One thread sends `items`, one receives `limit` of them; then both ends and all records are gone.
fn check(capacity: usize, items: &'static [Item], batch: usize, limit: usize) {
    model(move || {
        let probe = Arc::new(());
        let (mut producer, mut consumer) = channel(capacity);
        let sender = {
            let probe = probe.clone();
            thread::spawn(move || send(&mut producer, items, batch, &probe))
        };
        let received = receive(&mut consumer, capacity, limit);
        assert_eq!(received, items[..limit.min(items.len())]);
        drop(consumer);
        sender.join().unwrap();
        assert_eq!(Arc::strong_count(&probe), 1, "every record dropped once");
    });
}

const RECORDS: &[Item] =
    &[Item::Record(0), Item::Record(1), Item::Record(2), Item::Record(3), Item::Record(4)];

/// With marks at the front, behind a published and behind an unpublished record, next to each other
/// and at the end, and more of them than there are cells.
const MARKED: &[Item] = &[
    barrier(1),
    Item::Record(0),
    barrier(2),
    barrier(3),
    Item::Record(1),
    Item::Record(2),
    Item::Control(Control::End),
];

#[test]
fn records_arrive_in_order_through_one_slot() {
    check(1, &RECORDS[..3], 1, usize::MAX);
}

#[test]
fn records_arrive_in_order_through_two_slots() {
    check(2, RECORDS, 2, usize::MAX);
    check(2, RECORDS, 1, usize::MAX);
}

#[test]
fn marks_arrive_between_their_records_through_one_slot() {
    check(1, MARKED, 1, usize::MAX);
}

#[test]
fn marks_arrive_between_their_records_through_two_slots() {
    check(2, MARKED, 2, usize::MAX);
}

/// The consumer lets every barrier overtake the records in front of it, and takes these only then. Each
/// needs a cell that the one before has given back.
fn check_overtaking(capacity: usize, items: &'static [Item]) {
    model(move || {
        let probe = Arc::new(());
        let (mut producer, mut consumer) = channel(capacity);
        let sender = {
            let probe = probe.clone();
            thread::spawn(move || send(&mut producer, items, 1, &probe))
        };
        let is_barrier = |item: &Item| matches!(item, Item::Control(Control::Barrier(_)));
        for (at, item) in items.iter().enumerate() {
            let Item::Control(barrier @ Control::Barrier(_)) = *item else { continue };
            let before = items[..at].iter().filter(|item| matches!(item, Item::Record(_))).count();
            let seen = loop {
                match consumer.overtake(barrier) {
                    Some(records) => break records.map(<[_]>::len).iter().sum::<usize>(),
                    None => thread::yield_now(),
                }
            };
            assert_eq!(seen, before);
        }
        let rest: Vec<Item> = items.iter().filter(|item| !is_barrier(item)).copied().collect();
        assert_eq!(receive(&mut consumer, capacity, usize::MAX), rest);
        drop(consumer);
        sender.join().unwrap();
        assert_eq!(Arc::strong_count(&probe), 1, "every record dropped once");
    });
}

/// More barriers than there are cells, before and behind the last record.
const OVERTAKING: &[Item] = &[Item::Record(0), barrier(1), Item::Record(1), barrier(2), barrier(3)];

/// An end, which the barriers behind it pass.
const PASSING: &[Item] = &[Item::Record(0), Item::Control(Control::End), barrier(1), barrier(2)];

#[test]
fn barriers_overtake_the_records_before_them() {
    check_overtaking(2, OVERTAKING);
}

#[test]
fn barriers_overtake_an_end_before_them() {
    check_overtaking(1, PASSING);
}

#[test]
fn a_consumer_that_leaves_early_leaves_no_record_behind() {
    check(1, RECORDS, 1, 1);
    check(2, RECORDS, 1, 2);
    check(2, MARKED, 1, 3);
    check(2, RECORDS, 2, 0);
}

#[test]
fn both_ends_leave_at_once_with_records_in_the_ring() {
    model(|| {
        let probe = Arc::new(());
        let (mut producer, consumer) = channel(2);
        producer.push((0, probe.clone()));
        producer.publish();
        producer.push((1, probe.clone()));
        let sender = thread::spawn(move || drop(producer));
        drop(consumer);
        sender.join().unwrap();
        assert_eq!(Arc::strong_count(&probe), 1, "every record dropped once");
    });
}
