//! The index of unwind tables (`.eh_frame_hdr`), by which an unwinder finds the table of a function. A library has one
//! index. The new one has the library's entries and those of the added code.

use crate::inside::unfit::Unfit;

/// The encodings of an index as linkers make it: a relative pointer, a count of 4 bytes, and a table of pairs relative
/// to the index.
const ENCODINGS: [u8; 4] = [1, 0x1b, 0x03, 0x3b];

/// Bytes before the first pair.
const HEAD: usize = 12;

/// Bytes of a pair: the distances to a function, and to its record.
const PAIR: usize = 8;

/// The entries of an index: the address of each function, and of its record.
pub(super) struct UnwindIndex {
    /// Where the library's own tables begin.
    tables: u64,
    pairs: Vec<(u64, u64)>,
}

impl UnwindIndex {
    /// Reads the index that lies at an address.
    pub(super) fn read(bytes: &[u8], at: u64) -> Result<Self, Unfit> {
        let signed = |offset: usize| -> Option<i64> {
            let bytes = bytes.get(offset..offset + 4)?;
            Some(i64::from(i32::from_le_bytes(bytes.try_into().ok()?)))
        };
        if bytes.get(..ENCODINGS.len()) != Some(&ENCODINGS[..]) {
            return Err(Unfit::Layout);
        }
        let tables = signed(4).ok_or(Unfit::Layout)?;
        let count = signed(8).ok_or(Unfit::Layout)? as usize;
        let pairs = bytes.get(HEAD..).unwrap_or_default();
        if count > pairs.len() / PAIR {
            return Err(Unfit::Layout);
        }
        let pair = |number: usize| {
            let offset = HEAD + number * PAIR;
            let [function, record] = [signed(offset)?, signed(offset + 4)?];
            Some((
                at.wrapping_add_signed(function),
                at.wrapping_add_signed(record),
            ))
        };
        Ok(Self {
            tables: at.wrapping_add(4).wrapping_add_signed(tables),
            pairs: (0..count).map_while(pair).collect(),
        })
    }

    /// The functions that have an entry.
    #[cfg(test)]
    pub(super) fn functions(&self) -> impl Iterator<Item = u64> {
        self.pairs.iter().map(|(function, _)| *function)
    }

    /// How many bytes it takes with the records of these tables, too.
    pub(super) fn size_with(&self, tables: &[u8]) -> Result<u64, Unfit> {
        Ok((HEAD + (self.pairs.len() + records(tables)?.len()) * PAIR) as u64)
    }

    /// The index at another address, with the records of the tables that lie at `tables_at`, too.
    pub(super) fn with(&self, at: u64, tables: &[u8], tables_at: u64) -> Result<Vec<u8>, Unfit> {
        let mut pairs = self.pairs.clone();
        for record in records(tables)? {
            // The function's address is relative to the place where it is noted.
            let place = tables_at + record.function as u64;
            let distance = i64::from(record.distance);
            let function = place.wrapping_add_signed(distance);
            pairs.push((function, tables_at + record.at as u64));
        }
        pairs.sort_unstable();
        let distance = |from: u64, to: u64| -> Result<[u8; 4], Unfit> {
            let distance = to.wrapping_sub(from).cast_signed();
            let distance = i32::try_from(distance).map_err(|_| Unfit::Layout)?;
            Ok(distance.to_le_bytes())
        };
        let mut bytes = ENCODINGS.to_vec();
        bytes.extend(distance(at + 4, self.tables)?);
        let count = u32::try_from(pairs.len()).map_err(|_| Unfit::Layout)?;
        bytes.extend(count.to_le_bytes());
        for (function, record) in pairs {
            bytes.extend(distance(at, function)?);
            bytes.extend(distance(at, record)?);
        }
        Ok(bytes)
    }
}

/// The record of one function in unwind tables. Places are offsets in the tables.
struct FunctionRecord {
    at: usize,
    /// Where the function's address is noted.
    function: usize,
    distance: i32,
}

/// The records of functions in unwind tables.
fn records(tables: &[u8]) -> Result<Vec<FunctionRecord>, Unfit> {
    let word = |offset: usize| -> Result<[u8; 4], Unfit> {
        let bytes = tables.get(offset..offset + 4).ok_or(Unfit::Layout)?;
        bytes.try_into().map_err(|_| Unfit::Layout)
    };
    let (mut found, mut at) = (Vec::new(), 0);
    while at < tables.len() {
        let length = u32::from_le_bytes(word(at)?) as usize;
        if length == 0 {
            break;
        }
        // A record without a reference to a common one is a common one itself.
        if word(at + 4)? != [0; 4] {
            found.push(FunctionRecord {
                at,
                function: at + 8,
                distance: i32::from_le_bytes(word(at + 8)?),
            });
        }
        at = at.saturating_add(length + 4);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An index at 0x1000 with these pairs. Its tables are at 0x800.
    fn index(pairs: &[(u64, u64)]) -> Vec<u8> {
        let empty = UnwindIndex {
            tables: 0x800,
            pairs: pairs.to_vec(),
        };
        empty.with(0x1000, &[], 0).unwrap()
    }

    #[test]
    fn an_index_is_read_as_it_was_written() {
        let pairs = [(0x10, 0x810), (0x5000, 0x820)];
        let read = UnwindIndex::read(&index(&pairs), 0x1000).unwrap();
        assert_eq!((read.tables, &read.pairs[..]), (0x800, &pairs[..]));
    }

    #[test]
    fn records_are_added_in_the_order_of_functions() {
        // A common record, one of a function 0x40 before the place of its address, and the end.
        let mut tables = Vec::new();
        for word in [8, 0, 0, 12, 16, -0x40_i32, 0x20, 0] {
            tables.extend(word.to_le_bytes());
        }
        let own = UnwindIndex::read(&index(&[(0x10, 0x810), (0x5000, 0x820)]), 0x1000).unwrap();
        let bytes = own.with(0x3000, &tables, 0x2000).unwrap();
        assert_eq!(own.size_with(&tables).unwrap(), bytes.len() as u64);
        let read = UnwindIndex::read(&bytes, 0x3000).unwrap();
        assert_eq!(read.tables, 0x800);
        let added = (0x2000 + 12 + 8 - 0x40, 0x2000 + 12);
        assert_eq!(read.pairs, [(0x10, 0x810), added, (0x5000, 0x820)]);
    }

    #[test]
    fn an_index_of_another_form_is_refused() {
        let whole = index(&[(0x10, 0x810)]);
        let mut other = whole.clone();
        other[3] = 0x3c;
        for bytes in [&other[..], &whole[..whole.len() - 1], &whole[..7], &[]] {
            assert_eq!(UnwindIndex::read(bytes, 0x1000).err(), Some(Unfit::Layout));
        }
        assert!(records(&[9, 0, 0, 0, 1]).is_err());
    }
}
