//! When to publish: a lone change soon, a storm of changes in few large steps. Pure; time passed in.

use std::time::Duration;

use tokio::time::Instant;

/// A lone change waits this long, for the others of the same `apply`.
const SHORTEST: Duration = Duration::from_millis(5);
/// In a storm, one publication in this time.
const LONGEST: Duration = Duration::from_millis(100);
/// Changes that come one by one, this far apart or more, are lone ones: each goes out at once.
const APART: Duration = Duration::from_millis(40);
/// So long after a publication the next change counts as a lone one, whatever was before.
const CALM: Duration = Duration::from_millis(200);
/// A publication with as many changes was worth waiting for.
const MANY: u32 = 4;

/// Collects changes and says when they are due.
#[derive(Debug)]
pub struct Debounce {
    window: Duration,
    first_change: Option<Instant>,
    /// Changes since the last publication, and in it.
    changes: u32,
    published: u32,
    last_publication: Option<Instant>,
}

impl Default for Debounce {
    fn default() -> Self {
        Self { window: SHORTEST, first_change: None, changes: 0, published: 0, last_publication: None }
    }
}

impl Debounce {
    /// Something changed.
    pub fn changed(&mut self, now: Instant) {
        self.changes = self.changes.saturating_add(1);
        if self.first_change.is_some() {
            return;
        }
        self.first_change = Some(now);
        let since = self.last_publication.map(|last| now - last);
        let calm = if self.published < MANY { APART } else { CALM };
        let busy = since.is_some_and(|since| since < calm);
        self.window = if busy { (self.window * 2).min(LONGEST) } else { SHORTEST };
    }

    /// When what changed is to be published; `None` while there is nothing.
    pub fn due(&self) -> Option<Instant> {
        self.first_change.map(|first| first + self.window)
    }

    /// It was published. Returns how long the first change has waited.
    pub fn published(&mut self, now: Instant) -> Duration {
        self.last_publication = Some(now);
        self.published = std::mem::take(&mut self.changes);
        self.first_change.take().map_or(Duration::ZERO, |first| now - first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays changes at these milliseconds; gives the milliseconds of the publications.
    fn publications(changes: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let start = Instant::now();
        let mut debounce = Debounce::default();
        let mut out = Vec::new();
        let mut publish_until = |debounce: &mut Debounce, until: Option<Instant>| {
            while let Some(due) = debounce.due().filter(|due| until.is_none_or(|u| *due <= u)) {
                debounce.published(due);
                out.push((due - start).as_millis() as u64);
            }
        };
        for at in changes {
            let now = start + Duration::from_millis(at);
            publish_until(&mut debounce, Some(now));
            debounce.changed(now);
        }
        publish_until(&mut debounce, None);
        out
    }

    #[test]
    fn a_lone_change_is_published_within_ten_milliseconds() {
        assert_eq!(publications([0]), [5]);
        assert_eq!(publications([0, 1, 2, 3]), [5]);
        assert_eq!(publications([0, 1000, 2000]), [5, 1005, 2005]);
        // One after the other, each is one.
        assert_eq!(publications([0, 50, 100, 150]), [5, 55, 105, 155]);
    }

    #[test]
    fn a_storm_is_coalesced_and_nothing_waits_longer_than_a_tenth_of_a_second() {
        let out = publications(0..2000);
        assert!(out.len() <= 26, "{out:?}");
        let gaps: Vec<u64> = out.windows(2).map(|w| w[1] - w[0]).collect();
        assert!(gaps.iter().all(|gap| *gap <= 101), "{gaps:?}");
        assert_eq!(out[0], 5);
        // One change each 20 ms is no reason to publish each.
        let drizzle = publications((0..2000).step_by(20));
        assert!(drizzle.len() <= 50, "{drizzle:?}");
        // And calm brings back the short wait.
        let then = publications((0..1000).chain([5000]));
        assert_eq!(then.last(), Some(&5005));
    }
}
