//! A rate limit, as a token bucket: a number of lookups a minute, and a burst of as many at once.

use std::time::Duration;

use tokio::time::Instant;

/// A token bucket.
#[derive(Debug)]
pub struct Bucket {
    /// The number of tokens in a full bucket, and of those that are added in a minute.
    capacity: f64,
    level: f64,
    filled: Instant,
}

impl Bucket {
    /// Returns a full bucket of `per_minute` tokens, to which as many are added in a minute.
    pub fn new(per_minute: u32) -> Self {
        let capacity = f64::from(per_minute);
        Self { capacity, level: capacity, filled: Instant::now() }
    }

    /// Returns how many whole tokens there are.
    pub fn level(&mut self) -> u32 {
        self.fill();
        // The level is at most the capacity, which was made from a u32.
        self.level as u32
    }

    /// Takes `tokens` tokens. Returns false, and takes none, if there are fewer.
    pub fn take(&mut self, tokens: usize) -> bool {
        self.fill();
        let wanted = f64::from(u32::try_from(tokens).unwrap_or(u32::MAX));
        if self.level < wanted {
            return false;
        }
        self.level -= wanted;
        true
    }

    fn fill(&mut self) {
        let now = Instant::now();
        let minutes = now.duration_since(self.filled).as_secs_f64() / Duration::from_secs(60).as_secs_f64();
        self.level = (self.level + minutes * self.capacity).min(self.capacity);
        self.filled = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::new(30);
        assert_eq!((0..1000).filter(|_| bucket.take(1)).count(), 30);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!((0..1000).filter(|_| bucket.take(1)).count(), 5);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!((0..1000).filter(|_| bucket.take(1)).count(), 30);
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn a_bucket_of_nothing_never_gives() {
        let mut bucket = Bucket::new(0);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!(!bucket.take(1));
    }
}
