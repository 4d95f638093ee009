//! Packs bytes as gzip does (RFC 1952).

use miniz_oxide::deflate::compress_to_vec;

/// The usual level of compression.
const LEVEL: u8 = 6;

/// The packed bytes. Without name and time, so that the same bytes give the same file.
pub(super) fn packed(bytes: &[u8]) -> Vec<u8> {
    // Deflate, no flags, no time, and an unknown system.
    let mut file = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    file.extend(compress_to_vec(bytes, LEVEL));
    file.extend(checksum(bytes).to_le_bytes());
    // The length modulo 2^32.
    file.extend((bytes.len() as u32).to_le_bytes());
    file
}

/// CRC-32, as the RFC's sample code computes it.
fn checksum(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    let mut sum = u32::MAX;
    for byte in bytes {
        sum = TABLE[usize::from(sum as u8 ^ byte)] ^ sum >> 8;
    }
    !sum
}

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < table.len() {
        let mut entry = at as u32;
        let mut bit = 0;
        while bit < 8 {
            entry = match entry & 1 {
                1 => 0xedb8_8320 ^ entry >> 1,
                _ => entry >> 1,
            };
            bit += 1;
        }
        table[at] = entry;
        at += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        // The check value of CRC-32/ISO-HDLC.
        assert_eq!(checksum(b"123456789"), 0xcbf4_3926);
        assert_eq!(checksum(b""), 0);
    }
}
