//! A library whose tests pass. One of them loses memory.

/// Puts things on a shelf.
pub fn fill(things: usize) -> Vec<u8> {
    vec![7; things]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tidy() {
        assert_eq!(fill(70).len(), 70);
    }

    #[test]
    fn messy() {
        let shelf = std::hint::black_box(fill(70));
        std::mem::forget(shelf);
    }
}
