//! Whose turn it is to ask for jobs: tenants one after the other, and of each tenant its queues.
//!
//! ```text
//!   tenant A ─ tenant B ─ tenant C ─ …       the first gives one queue and goes to the end
//!      │          └─ q                       hence a tenant with a hundred queues asks no more often than one with one
//!      └─ q1 ─ q2 ─ q3 …
//! ```
//! Behind it a queue deals by session (`line`).

use super::worker::QueueName;
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3Default;

/// Queues with something to do, dealt by tenant. Each is in it once: whoever puts it in sees to that.
#[derive(Default)]
pub(super) struct Deal {
    tenants: VecDeque<Arc<str>>,
    queues: HashMap<Arc<str>, VecDeque<Arc<str>>, BuildHasherDefault<Xxh3Default>>,
    count: usize,
}

impl Deal {
    /// At the end of its tenant's row.
    pub fn push(&mut self, (tenant, queue): QueueName) {
        self.count += 1;
        match self.queues.get_mut(&tenant) {
            Some(row) => row.push_back(queue),
            None => {
                self.queues.insert(tenant.clone(), VecDeque::from([queue]));
                self.tenants.push_back(tenant);
            }
        }
    }

    /// The next one; its tenant goes to the end.
    pub fn pop(&mut self) -> Option<QueueName> {
        let tenant = self.tenants.pop_front()?;
        let row = self.queues.get_mut(&tenant)?;
        let queue = row.pop_front()?;
        self.count -= 1;
        if row.is_empty() {
            self.queues.remove(&tenant);
        } else {
            self.tenants.push_back(tenant.clone());
        }
        Some((tenant, queue))
    }

    /// Queues in it.
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_with_many_queues_asks_no_more_often_than_another() {
        let mut deal = Deal::default();
        for queue in ["a1", "a2", "a3"] {
            deal.push(("a".into(), queue.into()));
        }
        deal.push(("b".into(), "b1".into()));
        assert_eq!(deal.len(), 4);
        let mut order = Vec::new();
        for step in 0..6 {
            let Some((tenant, queue)) = deal.pop() else { break };
            order.push(queue.to_string());
            // The other tenant has something again each time.
            if step < 2 && &*tenant == "b" {
                deal.push((tenant, queue));
            }
        }
        assert_eq!(order, ["a1", "b1", "a2", "b1", "a3"]);
        assert!(deal.is_empty());
    }
}
