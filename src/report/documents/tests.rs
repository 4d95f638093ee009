use std::collections::BTreeMap;

use serde_json::Value;

use crate::model::finished::samples::{finished, without_stacks};
use crate::report::documents::collapsed::collapsed;
use crate::report::documents::dhat::dhat;
use crate::report::documents::html::html;
use crate::report::documents::pprof::{pprof, profile};

fn text(document: Vec<u8>) -> String {
    String::from_utf8(document).expect("the document is UTF-8")
}

#[test]
fn the_session_as_collapsed_stacks() {
    insta::assert_snapshot!(text(collapsed(&finished())));
}

#[test]
fn the_session_without_stacks_as_collapsed_stacks() {
    insta::assert_snapshot!(text(collapsed(&without_stacks())));
}

#[test]
fn the_session_as_a_dhat_profile() {
    let document: Value = serde_json::from_slice(&dhat(&finished())).unwrap();
    insta::assert_snapshot!(format!("{document:#}"));
}

#[test]
fn a_dhat_profile_adds_up_to_the_session_and_has_each_stack_once() {
    for finished in [finished(), without_stacks()] {
        let document: Value = serde_json::from_slice(&dhat(&finished)).unwrap();
        let points = document["pps"].as_array().unwrap();
        let sum = |field: &str| {
            let values = points.iter().map(|point| point[field].as_u64().unwrap());
            values.sum::<u64>()
        };
        let summary = &finished.summary;
        assert_eq!(sum("tb"), summary.total_allocs_bytes);
        assert_eq!(sum("eb"), summary.leaked.lower);
        assert_eq!(sum("ebk"), summary.leaked_blocks);
        let stacks: BTreeMap<_, _> = points
            .iter()
            .map(|point| (point["fs"].to_string(), ()))
            .collect();
        assert_eq!(stacks.len(), points.len());
    }
}

/// A field of a message: its number, and a number or bytes.
type Field<'a> = (u64, Result<u64, &'a [u8]>);

/// Reads a message of Protocol Buffers.
fn fields(mut bytes: &[u8]) -> Vec<Field<'_>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let value = varint(&mut bytes);
        fields.push((
            key >> 3,
            match key & 7 {
                0 => Ok(value),
                2 => {
                    let (part, rest) = bytes.split_at(value as usize);
                    bytes = rest;
                    Err(part)
                }
                other => panic!("no such type of a field: {other}"),
            },
        ));
    }
    fields
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let (byte, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

/// The profile in words, with the numbers of its tables replaced by what they stand for.
fn in_words(profile: &[u8]) -> String {
    let profile = fields(profile);
    let bytes = |field: u64| {
        let wanted = profile.iter().filter(move |(found, _)| *found == field);
        wanted.map(|(_, value)| value.unwrap_err())
    };
    let texts: Vec<&str> = bytes(6)
        .map(|text| std::str::from_utf8(text).unwrap())
        .collect();
    assert_eq!(texts[0], "");
    let number = |message: &[u8], field: u64| {
        let found = fields(message).into_iter().find(|(it, _)| *it == field);
        found.map_or(0, |(_, value)| value.unwrap())
    };
    let text = |message: &[u8], field: u64| texts[number(message, field) as usize];
    // The numbers of a table's entries are 1, 2, …
    let table = |field: u64| {
        let entries: Vec<&[u8]> = bytes(field).collect();
        for (expected, entry) in (1..).zip(&entries) {
            assert_eq!(number(entry, 1), expected);
        }
        entries
    };
    let (mappings, locations, functions) = (table(3), table(4), table(5));
    let mut words = String::new();
    for kind in bytes(1) {
        words += &format!("value {}/{}\n", text(kind, 1), text(kind, 2));
    }
    for (number, mapping) in (1..).zip(&mappings) {
        words += &format!("file {number} {} {}\n", text(mapping, 5), text(mapping, 6));
    }
    for sample in bytes(2) {
        let packed = |field: u64| {
            let all = fields(sample).into_iter();
            let mut packed = all
                .filter(move |(found, _)| *found == field)
                .map(|(_, value)| value.unwrap_err());
            let mut packed = packed.next().unwrap();
            let mut values = Vec::new();
            while !packed.is_empty() {
                values.push(varint(&mut packed));
            }
            values
        };
        words += &format!("sample {:?}\n", packed(2));
        for (_, label) in fields(sample).iter().filter(|(field, _)| *field == 3) {
            let label = label.unwrap_err();
            words += &format!("  {}: {}\n", text(label, 1), text(label, 2));
        }
        for location in packed(1) {
            let location = locations[location as usize - 1];
            let (file, address) = (number(location, 2), number(location, 3));
            words += &format!("  {address:#x} in {file}\n");
            for (_, line) in fields(location).iter().filter(|(field, _)| *field == 4) {
                let line = line.unwrap_err();
                let function = functions[number(line, 1) as usize - 1];
                let [name, linkage, file] = [2, 3, 4].map(|field| text(function, field));
                words += &format!("    {name} ({linkage}) {file}:{}\n", number(line, 2));
            }
        }
    }
    for (field, value) in &profile {
        if let (9.., Ok(value)) = (field, value) {
            words += &format!("{field} = {value}\n");
        }
    }
    for (_, comment) in profile.iter().filter(|(field, _)| *field == 13) {
        let mut numbers = comment.unwrap_err();
        while !numbers.is_empty() {
            words += &format!("comment {}\n", texts[varint(&mut numbers) as usize]);
        }
    }
    let default = profile.iter().find(|(field, _)| *field == 14).unwrap();
    words += &format!("shown first: {}\n", texts[default.1.unwrap() as usize]);
    words
}

#[test]
fn the_session_as_a_profile_of_pprof() {
    insta::assert_snapshot!(in_words(&profile(&finished())));
}

#[test]
fn the_session_without_stacks_as_a_profile_of_pprof() {
    insta::assert_snapshot!(in_words(&profile(&without_stacks())));
}

#[test]
fn a_profile_of_pprof_is_packed_by_gzip() {
    let packed = pprof(&finished());
    let (header, rest) = packed.split_at(10);
    assert_eq!(header[..3], [0x1f, 0x8b, 8]);
    let (deflated, trailer) = rest.split_at(rest.len() - 8);
    let unpacked = miniz_oxide::inflate::decompress_to_vec(deflated).unwrap();
    assert_eq!(unpacked, profile(&finished()));
    let length = u32::from_le_bytes(trailer[4..].try_into().unwrap());
    assert_eq!(length as usize, unpacked.len());
}

/// The data of a page.
fn data_of(page: &str) -> Value {
    let (_, rest) = page.split_once("id=\"data\">").unwrap();
    let (data, _) = rest.split_once("</script>").unwrap();
    assert!(!data.contains('<'), "{data}");
    serde_json::from_str(data).unwrap()
}

#[test]
fn the_session_as_a_page() {
    let page = text(html(&finished()));
    insta::assert_snapshot!(format!("{:#}", data_of(&page)));
}

#[test]
fn no_name_is_in_a_page_but_in_its_data() {
    let page = text(html(&finished()));
    for tag in ["<script", "</script>", "<title>", "</style>"] {
        let count = |page: &str| page.matches(tag).count();
        assert_eq!(count(&page), count(&text(html(&without_stacks()))), "{tag}");
    }
    // Nothing is loaded, and nothing is written as markup.
    for word in [
        "http:",
        "https:",
        "src=",
        "href=",
        "innerHTML",
        "document.write",
        "{{",
        "url(",
    ] {
        assert!(!page.contains(word), "{word}");
    }
}

#[test]
fn a_page_without_stacks_has_a_row_for_each_executable() {
    let data = data_of(&text(html(&without_stacks())));
    let rows = data["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 5);
    let sum = |at: usize| {
        let values = rows.iter().map(|row| row["values"][at].as_u64());
        values.flatten().sum::<u64>()
    };
    let summary = without_stacks().summary;
    assert_eq!(sum(2), summary.leaked.lower);
    assert_eq!(sum(4), summary.total_allocs_bytes);
    assert!(rows.iter().all(|row| row["frames"].is_null()));
}
