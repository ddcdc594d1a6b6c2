//! Every interleaving of two threads over the mailbox's own files, atomics and rings replaced by loom's.
//!
//! The files are compiled here once more, with what they import from `super` under the model's control. Loom checks
//! SeqCst fences, but not SeqCst accesses as strongly as the hardware gives them: what passes here holds there.

/// What `sleep.rs` imports in place of `std`.
mod atomics {
    pub use loom::sync::atomic::{AtomicBool, Ordering, fence};
}

#[path = "../src/mailbox/sleep.rs"]
mod sleep;

/// What `lane.rs` imports in place of `rtrb`: the same algorithm and the same orderings, seen by loom.
mod rings {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    use std::marker::PhantomData;

    struct Shared {
        /// Read and written without order, as plain memory would be: only head and tail make a value visible.
        cells: Vec<AtomicU64>,
        head: AtomicUsize,
        tail: AtomicUsize,
    }

    pub struct RingBuffer<T>(PhantomData<T>);
    pub struct Producer<T>(Arc<Shared>, PhantomData<T>);
    pub struct Consumer<T>(Arc<Shared>, PhantomData<T>);
    pub struct WriteChunk<'a, T>(&'a Shared, Vec<T>);
    pub struct ReadChunk<'a, T>(&'a Shared, Vec<T>);
    #[derive(Debug)]
    pub struct Full;

    impl<T> RingBuffer<T> {
        #[allow(clippy::new_ret_no_self)] // as rtrb has it
        pub fn new(capacity: usize) -> (Producer<T>, Consumer<T>) {
            let cells = (0..capacity).map(|_| AtomicU64::new(u64::MAX)).collect();
            let shared = Arc::new(Shared { cells, head: AtomicUsize::new(0), tail: AtomicUsize::new(0) });
            (Producer(Arc::clone(&shared), PhantomData), Consumer(shared, PhantomData))
        }
    }

    impl Shared {
        fn put(&self, tail: usize, value: u64) {
            self.cells[tail % self.cells.len()].store(value, Ordering::Relaxed);
        }
        fn get(&self, head: usize) -> u64 {
            self.cells[head % self.cells.len()].load(Ordering::Relaxed)
        }
        fn free(&self) -> usize {
            self.cells.len() - (self.tail.load(Ordering::Relaxed) - self.head.load(Ordering::Acquire))
        }
        fn filled(&self) -> usize {
            self.tail.load(Ordering::Acquire) - self.head.load(Ordering::Relaxed)
        }
    }

    impl<T: Copy + Default + Into<u64> + TryFrom<u64>> Producer<T> {
        pub fn slots(&self) -> usize {
            self.0.free()
        }
        pub fn push(&mut self, value: T) -> Result<(), Full> {
            let mut chunk = self.write_chunk(1)?;
            chunk.1[0] = value;
            chunk.commit_all();
            Ok(())
        }
        pub fn write_chunk(&mut self, count: usize) -> Result<WriteChunk<'_, T>, Full> {
            if self.0.free() < count { Err(Full) } else { Ok(WriteChunk(&self.0, vec![T::default(); count])) }
        }
    }

    impl<T: Copy + Into<u64>> WriteChunk<'_, T> {
        pub fn as_mut_slices(&mut self) -> (&mut [T], &mut [T]) {
            let half = self.1.len() / 2;
            self.1.split_at_mut(half)
        }
        pub fn commit_all(self) {
            let tail = self.0.tail.load(Ordering::Relaxed);
            for (index, value) in self.1.iter().enumerate() {
                self.0.put(tail + index, (*value).into());
            }
            self.0.tail.store(tail + self.1.len(), Ordering::Release);
        }
    }

    impl<T: Copy + Default + Into<u64> + TryFrom<u64>> Consumer<T> {
        pub fn slots(&self) -> usize {
            self.0.filled()
        }
        pub fn pop(&mut self) -> Result<T, Full> {
            let chunk = self.read_chunk(1)?;
            let value = chunk.1[0];
            chunk.commit_all();
            Ok(value)
        }
        pub fn read_chunk(&mut self, count: usize) -> Result<ReadChunk<'_, T>, Full> {
            if self.0.filled() < count {
                return Err(Full);
            }
            let head = self.0.head.load(Ordering::Relaxed);
            let value = |index| T::try_from(self.0.get(head + index)).unwrap_or_else(|_| panic!("a cell nobody wrote"));
            Ok(ReadChunk(&self.0, (0..count).map(value).collect()))
        }
    }

    impl<T> ReadChunk<'_, T> {
        pub fn as_slices(&self) -> (&[T], &[T]) {
            self.1.split_at(self.1.len() / 2)
        }
        pub fn commit_all(self) {
            let head = self.0.head.load(Ordering::Relaxed);
            self.0.head.store(head + self.1.len(), Ordering::Release);
        }
    }
}

#[path = "../src/mailbox/lane.rs"]
#[allow(dead_code)] // the shard uses more of it
mod lane;

use atomics::{AtomicBool, Ordering};
use loom::sync::Arc;
use loom::sync::atomic::AtomicUsize;
use loom::thread;
use sleep::SleepFlag;

/// Mail that went in before the sleeper looked is seen by it; mail that went in after rings its bell.
#[test]
fn no_mail_lies_in_front_of_a_sleeper_that_nobody_wakes() {
    loom::model(|| {
        let flag = Arc::new(SleepFlag::default());
        let mail = Arc::new(AtomicUsize::new(0));
        let bell = Arc::new(AtomicBool::new(false));
        let sender = {
            let (flag, mail, bell) = (Arc::clone(&flag), Arc::clone(&mail), Arc::clone(&bell));
            thread::spawn(move || {
                mail.store(1, Ordering::Release);
                if flag.must_wake() {
                    bell.store(true, Ordering::SeqCst);
                }
            })
        };
        let parks = flag.prepare_park(|| mail.load(Ordering::Acquire) > 0);
        sender.join().unwrap();
        assert!(!parks || bell.load(Ordering::SeqCst), "asleep, with mail, and nobody rang");
    });
}

/// Two senders, one sleeper: it is woken, and by one of them only.
#[test]
fn of_two_senders_one_wakes() {
    let mut model = loom::model::Builder::new();
    // Three threads are too many for all of them; two switches against a thread's will find what is found at all.
    model.preemption_bound = Some(2);
    model.check(|| {
        let flag = Arc::new(SleepFlag::default());
        let mail = Arc::new(AtomicUsize::new(0));
        let rings = Arc::new(AtomicUsize::new(0));
        let send = || {
            let (flag, mail, rings) = (Arc::clone(&flag), Arc::clone(&mail), Arc::clone(&rings));
            move || {
                mail.fetch_add(1, Ordering::Release);
                if flag.must_wake() {
                    rings.fetch_add(1, Ordering::SeqCst);
                }
            }
        };
        let senders = [thread::spawn(send()), thread::spawn(send())];
        let parks = flag.prepare_park(|| mail.load(Ordering::Acquire) > 0);
        for sender in senders {
            sender.join().unwrap();
        }
        let rings = rings.load(Ordering::SeqCst);
        assert!(rings <= 1, "woken {rings} times");
        assert!(!parks || rings == 1, "asleep, with mail, and nobody rang");
    });
}

/// A message is there whole as soon as its length is, and a full lane is said before it overflows.
#[test]
fn messages_cross_whole_and_in_order() {
    loom::model(|| {
        let (mut sender, mut receiver) = lane::lane(2, 4);
        let sending = thread::spawn(move || {
            let mut sent = 0u8;
            for message in [&[1u8, 2][..], &[3, 4, 5]] {
                if let Some(permit) = sender.permit(message.len()) {
                    sender.send(permit, message, 0);
                    sent += 1;
                }
            }
            sent
        });
        let mut got = Vec::new();
        for _ in 0..2 {
            if let Some(message) = receiver.peek() {
                got.push(message.to_vec());
                receiver.pop();
            }
        }
        let sent = sending.join().unwrap();
        while let Some(message) = receiver.peek() {
            got.push(message.to_vec());
            receiver.pop();
        }
        let expected = [vec![1u8, 2], vec![3, 4, 5]];
        assert_eq!(got, expected[..usize::from(sent)]);
    });
}
