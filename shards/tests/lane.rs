//! A lane of a mailbox against the plainest model of it: a queue of messages with two bounds.

use proptest::prelude::*;
use shards::mailbox::lane::lane;
use std::collections::VecDeque;

#[derive(Clone, Debug)]
enum Step {
    Send(Vec<u8>),
    Peek,
    Pop,
    /// Taken out and put back, done with or not.
    Take(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..24).prop_map(Step::Send),
        1 => Just(Step::Peek),
        3 => Just(Step::Pop),
        1 => any::<bool>().prop_map(Step::Take),
    ];
    proptest::collection::vec(step, 1..300)
}

proptest! {
    /// Whatever is sent, taken and put back: messages come out whole, in order, each until it is popped; room is what
    /// the bounds leave, and a message that was peeked at has given its room back.
    #[test]
    fn is_a_bounded_queue(steps in steps(), slots in 1usize..6, bytes in 1usize..64) {
        let (mut sender, mut receiver) = lane(slots, bytes);
        let mut model: VecDeque<Vec<u8>> = VecDeque::new();
        let mut held = false;
        for step in steps {
            let inside = usize::from(held)..model.len();
            let free_slots = slots - inside.len();
            let free_bytes = bytes - model.range(inside).map(Vec::len).sum::<usize>();
            match step {
                Step::Send(message) => {
                    let permit = sender.permit(message.len());
                    prop_assert_eq!(permit.is_some(), free_slots > 0 && free_bytes >= message.len());
                    if let Some(permit) = permit {
                        sender.send(permit, &message, message.len() as u32 + 7);
                        model.push_back(message);
                    }
                }
                Step::Peek => {
                    prop_assert_eq!(receiver.peek(), model.front().map(Vec::as_slice));
                    held = !model.is_empty();
                }
                Step::Pop if receiver.peek().is_some() => {
                    receiver.pop();
                    model.pop_front();
                    held = false;
                }
                Step::Pop => prop_assert!(model.is_empty()),
                Step::Take(done) => {
                    let taken = receiver.take();
                    prop_assert_eq!(taken.as_ref(), model.front());
                    if let Some(taken) = &taken {
                        prop_assert_eq!(receiver.sent_us(), taken.len() as u32 + 7, "each with its own stamp");
                    }
                    if let Some(taken) = taken {
                        receiver.restore(taken, done);
                        held = !done;
                        if done {
                            model.pop_front();
                        }
                    }
                }
            }
            prop_assert_eq!(receiver.has_mail() || receiver.holds_mail(), !model.is_empty());
        }
        while let Some(message) = model.pop_front() {
            prop_assert_eq!(receiver.peek(), Some(&message[..]));
            receiver.pop();
        }
        prop_assert!(!receiver.has_mail());
    }
}

#[test]
fn a_message_larger_than_the_lane_never_gets_a_permit() {
    let (sender, _receiver) = lane(4, 16);
    assert!(sender.permit(17).is_none() && sender.permit(16).is_some());
}

/// Two real threads, a million bytes: nothing is torn or lost.
#[test]
#[allow(clippy::disallowed_methods)] // the crate has no threads; this test has two
fn survives_two_threads() {
    let (mut sender, mut receiver) = lane(16, 1 << 10);
    let messages = 20_000u32;
    let sending = std::thread::spawn(move || {
        for n in 0..messages {
            let message = vec![n as u8; n as usize % 97];
            let permit = loop {
                match sender.permit(message.len()) {
                    Some(permit) => break permit,
                    None => std::thread::yield_now(),
                }
            };
            sender.send(permit, &message, message.len() as u32 + 7);
        }
    });
    for n in 0..messages {
        loop {
            match receiver.peek() {
                Some(message) => {
                    assert!(message.len() == n as usize % 97 && message.iter().all(|byte| *byte == n as u8), "{n}");
                    receiver.pop();
                    break;
                }
                None => std::thread::yield_now(),
            }
        }
    }
    sending.join().unwrap();
}
