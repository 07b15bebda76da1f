//! What may wait in an inbox, and what may go round in a loop.

use super::*;
use crate::record::Buffer;

/// Two entrances of one loop, in which 64 records may go round.
fn entrances() -> ([Bench; 2], Arc<Flight>) {
    let [near, mut far] = [(), ()].map(|()| bench(&[Regular, BackEdge], Mode::Abs, 1 << 10));
    let flight = near.inbox.setting.flight.clone().unwrap();
    far.inbox.setting.flight = Some(flight.clone());
    ([near, far], flight)
}

/// Each entrance looked at its own back-edge only. Where keys lead all that goes round to one of them, the
/// other let in what made that one's back-edge outgrow its bounds.
#[test]
fn an_entrance_lets_nothing_in_while_much_goes_round_elsewhere() {
    let ([mut near, _far], flight) = entrances();
    flight.sent(65);
    near.send(0, [100]);
    near.send(1, [7]);
    assert_eq!(near.pull_all(), Pulled::Nothing);
    assert_eq!(near.taken(), [7], "what goes round is read on");
    // An entrance of a loop inside this one: what comes in there goes round already.
    near.inbox.inputs[0].inside = true;
    flight.sent(1);
    assert_eq!(near.pull_all(), Pulled::Nothing);
    assert_eq!(near.taken(), [100]);
    near.inbox.inputs[0].inside = false;
    near.send(0, [101]);
    assert_eq!(near.pull_all(), Pulled::Nothing);
    assert!(near.taken().is_empty());
    flight.handled(1);
    assert_eq!(near.pull_all(), Pulled::Nothing);
    assert_eq!(near.taken(), [101]);
}

/// What goes round may stand before a task that waits for this entrance's barrier.
#[test]
fn an_entrance_is_not_closed_while_another_is_a_snapshot_ahead() {
    let ([mut near, mut far], flight) = entrances();
    far.barrier(0, ONE);
    assert_eq!(far.pull(), Pulled::Barrier(ONE));
    flight.sent(65);
    near.send(0, [100]);
    near.barrier(0, ONE);
    near.send(0, [101]);
    assert_eq!(near.pull_all(), Pulled::Barrier(ONE));
    assert_eq!(near.pull_all(), Pulled::Nothing);
    assert_eq!(near.taken(), [100], "closed again behind the barrier");
}

#[test]
fn a_loop_that_makes_more_than_it_lets_out_is_an_error_that_names_it() {
    let mut bench = bench(&[Regular, BackEdge], Mode::Abs, 16 * size_of::<u64>());
    bench.stage.room = 0;
    let error = loop {
        let room = bench.senders[1].room(SLOTS) as u64;
        bench.send(1, 0..room);
        if let Err(error) = bench.inbox.relieve(0) {
            break error;
        }
    };
    assert!(error.to_string().contains("loop 'again'"), "{error}");
    assert!(!error.is_retryable());
}

#[test]
fn trap_20_the_end_comes_when_nothing_goes_round_any_more_however_long_that_takes() {
    let mut bench = bench(&[Regular, BackEdge], Mode::Abs, 1 << 10);
    let flight = bench.inbox.setting.flight.clone().unwrap();
    flight.sent(1); // somewhere in the loop's body
    bench.senders[0].control(Control::End).unwrap();
    for _ in 0..1_000 {
        bench.now_ns += 1_000_000_000;
        assert_ne!(bench.pull(), Pulled::Ended);
    }
    flight.handled(1);
    assert_eq!(bench.pull(), Pulled::Ended);
    assert_eq!(bench.pull(), Pulled::Nothing, "once");
}

#[test]
fn a_slow_stage_is_given_fewer_records_at_once_and_an_idle_step_does_not_change_that() {
    let mut bench = bench(&[Regular], Mode::Abs, 1 << 10);
    bench.inbox.start_small();
    let mut step = |records: usize, ns: u64| {
        bench.inbox.records_max = bench.inbox.records_max.min(SLOTS);
        bench.send(0, (0..records as u64).collect::<Vec<_>>());
        bench.pull();
        let taken = bench.taken().len();
        bench.inbox.took(ns);
        while bench.pull() == Pulled::Worked {}
        // What emptied the ring is no step of the test.
        bench.taken();
        bench.inbox.taken_most = 0;
        (taken, bench.inbox.records_max)
    };
    assert_eq!(step(SLOTS, STEP_NS_MAX + 1), (8, 4));
    assert_eq!(step(SLOTS, STEP_NS_MAX + 1), (4, 2));
    for _ in 0..9 {
        assert_eq!(step(0, 10), (0, 2), "an idle step says nothing");
    }
    assert_eq!(step(1, 10), (1, 2), "nor one that had little to take");
    assert_eq!(step(SLOTS, 10), (2, 4));
    assert_eq!(step(0, STEP_NS_MAX + 1), (0, 4), "something else took long");
}

/// All of it was given to the stage in one step, up to 64 MiB.
#[test]
fn a_restored_log_is_handled_in_turns_with_a_bound() {
    let mut bench = bench(&[Regular, Regular], AFTER, 1 << 10);
    let records: Vec<u64> = (0..3 * INPUT_RECORDS_MAX as u64 + 5).collect();
    let (log, mut pieces) = (bench.inbox.log(), Pieces::default());
    log.begin(ONE);
    log.mark(ONE);
    log.append(1, &records);
    log.seal();
    assert_eq!(log.drain(1 << 20, &mut pieces).unwrap(), Drained::Done);
    for (slot, schema, bytes) in &pieces.0 {
        log.restore(*slot, *schema, bytes).unwrap();
    }
    bench.send(0, [7]);
    for turn in 1..4 {
        assert_eq!(bench.pull(), Pulled::Worked);
        assert_eq!(bench.stage.taken.len(), turn * INPUT_RECORDS_MAX);
    }
    bench.pull_all();
    assert_eq!(bench.taken(), [&records[..], &[7]].concat(), "before any input");
}

/// Records of the ring wait with what they own: the budget was a number of strings, of any length.
#[test]
fn what_records_own_counts_for_what_an_input_may_set_aside() {
    let (mut sender, ring) = channel(SLOTS);
    let mut inbox = Inbox::acyclic(vec![ring], SnapshotId(0));
    inbox.inputs[0].kind = BackEdge;
    let limits = Limits { memory_bytes: 1 << 20, disk_bytes: 0 };
    inbox.inputs[0].backlog = Backlog::new(limits, None);
    let mut error = None;
    for round in 0.. {
        (0..sender.room(SLOTS)).for_each(|_| sender.push("x".repeat(100 << 10)));
        sender.publish();
        error = inbox.relieve(0).err();
        if error.is_some() || round > 100 {
            break;
        }
    }
    let Some(Error::Operator { source, .. }) = error else { panic!("{error:?}") };
    assert!(matches!(*source, Error::Limit { .. }), "{source}");
    assert!(inbox.inputs[0].backlog.len() < 24, "{}", inbox.inputs[0].backlog.len());
}

/// One heavy record that is looked at counts for all at first. A job without a disk failed for records that
/// were not there.
#[test]
fn one_heavy_record_among_many_does_not_exhaust_a_backlog() {
    let limits = Limits { memory_bytes: 1 << 20, disk_bytes: 0 };
    let mut backlog = Backlog::new(limits, None);
    let mut put = |bytes: &[usize]| {
        let mut records: Buffer<String> =
            bytes.iter().map(|bytes| "x".repeat(*bytes)).collect::<Vec<_>>().into();
        records.lend(|batch| {
            backlog.weigh(batch.as_slice());
            backlog.push(batch)
        });
        let is_full = backlog.room() == 0;
        (is_full, backlog.is_exhausted(), backlog.room() > 0)
    };
    assert_eq!(put(&[1_000; 500]), (false, false, true));
    assert_eq!(
        put(&[200_000; 64]),
        (true, false, true),
        "none of them was taken, and there is room"
    );
    assert_eq!(put(&[1_000; 900]), (true, true, false), "now it is full");
}

/// A loop failed for what one record weighed, though none became heavier.
#[test]
fn a_loop_has_outgrown_its_bounds_only_if_its_records_go_on_growing() {
    let (_sender, ring) = channel(SLOTS);
    let mut inbox = Inbox::<String>::acyclic(vec![ring], SnapshotId(0));
    let flight = Arc::new(Flight::new(1));
    flight.sent(10_000);
    inbox.inputs[0].kind = BackEdge;
    inbox.setting.flight = Some(flight.clone());
    inbox.setting.aloft_bytes_max = 1 << 20;
    let mut come_by = |bytes: usize, times: usize| {
        let records = vec!["x".repeat(bytes); 64];
        (0..times).try_for_each(|_| {
            inbox.inputs[0].backlog.weigh(&records);
            inbox.check_grown()
        })
    };
    come_by(200, 9).unwrap();
    come_by(200, 99).unwrap();
    flight.handled(9_999);
    come_by(2_000, 9).unwrap();
    flight.sent(9_999);
    come_by(2_000, 9).unwrap();
    let error = come_by(6_000, 9).unwrap_err();
    assert!(error.to_string().contains("makes its records larger"), "{error}");
}
