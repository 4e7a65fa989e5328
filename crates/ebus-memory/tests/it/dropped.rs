//! i04: a source whose `recv` is dropped again and again, in the midst of hand-overs.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use ebus_memory::MemoryBackend;

use crate::tools::*;

/// Polls `recv` so often at most, or for a while of paused time, and drops it.
async fn recv_cut(member: &mut Member, times: usize) {
    let mut recv = pin!(member.recv(3));
    let mut polls = 0;
    let cut = std::future::poll_fn(|cx| {
        if polls == times {
            return Poll::Ready(());
        }
        polls += 1;
        match recv.as_mut().poll(cx) {
            Poll::Pending if polls < times => Poll::Pending,
            _ => Poll::Ready(()),
        }
    });
    let _ = tokio::time::timeout(Duration::from_millis(7), cut).await;
}

/// One that does what it is told at once, and whose `recv` is dropped in every way.
struct Dropped {
    member: Member,
    done: Vec<u64>,
}

impl Dropped {
    async fn join(backend: &MemoryBackend) -> Self {
        Self { member: Member::join(backend).await, done: Vec::new() }
    }

    async fn step(&mut self, times: usize) {
        recv_cut(&mut self.member, times).await;
        self.done.extend(self.member.finish(|_| true));
        self.member.release();
    }

    async fn leave(self) -> Vec<u64> {
        assert!(self.member.lost.is_empty() && self.member.troubles.is_empty(), "{:?}", self.member.lost);
        assert!(self.member.released.iter().all(|(_, committed)| committed.is_ok()));
        self.member.close().await.expect("its last commit is accepted");
        self.done
    }
}

/// Whatever `recv` was about to say when it was dropped, the next one says: messages, assignments, revocations, and that they
/// are released. Each message comes once, since each is settled before its partition is given back.
#[tokio::test(start_paused = true)]
async fn i04_p1_p6_a_recv_that_is_dropped_loses_nothing_and_says_nothing_twice() {
    // Never polled, polled once and dropped while it waits, polled again when it is woken, and mixtures of these.
    for pattern in [&[1][..], &[0, 1], &[2], &[1, 2, 0, 3], &[3, 1, 1], &[0, 0, 2]] {
        let backend = broker(3).await;
        let mut first = Dropped::join(&backend).await;
        let mut second = None;
        let mut done = Vec::new();
        let mut published = 0;
        for step in 0..400 {
            if step % 4 == 0 && step < 320 {
                let key = (step % 7).to_string();
                publish(&backend, &key, published..published + 2).await;
                published += 2;
            }
            match step {
                // Hand-overs, both ways, while messages come.
                60 | 180 => second = Some(Dropped::join(&backend).await),
                120 | 240 => done.extend(second.take().expect("has joined").leave().await),
                _ => {}
            }
            let times = pattern[step as usize % pattern.len()];
            first.step(times).await;
            if let Some(second) = &mut second {
                second.step(times).await;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!done.is_empty(), "the second one had its share: {pattern:?}");
        done.extend(first.leave().await);
        done.sort_unstable();
        assert_eq!(done, Vec::from_iter(0..published), "{pattern:?}");
    }
}
