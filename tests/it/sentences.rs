//! The documents are for readers in a hurry: README.md and docs/ have no long sentence.

use std::path::Path;

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use crate::links::markdown_below;

/// The most words of a sentence. Inline code is one word.
const MOST_WORDS: usize = 30;

/// The least number of sentences in the documents. If the test finds fewer, it looks in the wrong places.
const SENTENCES: usize = 2000;

/// The sentences of the paragraphs, the items of lists and the cells of tables. Headings and blocks of code have none.
fn sentences(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut current = String::new();
    let mut ignored = 0_u32;
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::CodeBlock(_) | Tag::Heading { .. }) => ignored += 1,
            Event::End(TagEnd::CodeBlock | TagEnd::Heading(_)) => ignored -= 1,
            Event::Start(Tag::Paragraph | Tag::Item | Tag::TableCell)
            | Event::End(TagEnd::Paragraph | TagEnd::Item | TagEnd::TableCell) => {
                found.extend(split(&std::mem::take(&mut current)));
            }
            Event::Text(text) if ignored == 0 => current.push_str(&text),
            Event::Code(_) if ignored == 0 => current.push_str("code"),
            Event::SoftBreak | Event::HardBreak => current.push(' '),
            _ => {}
        }
    }
    found
}

/// A full stop, an exclamation mark or a question mark ends a sentence, also within parentheses or quotes.
fn split(text: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    for word in text.split_whitespace() {
        let last = found.last_mut().expect("there is one");
        last.push_str(word);
        last.push(' ');
        let end = word.trim_end_matches([')', '"']);
        if end.ends_with(['.', '!', '?']) {
            found.push(String::new());
        }
    }
    found.retain(|sentence| !sentence.is_empty());
    found
}

fn words(sentence: &str) -> usize {
    let is_word = |word: &&str| word.contains(char::is_alphanumeric);
    sentence.split_whitespace().filter(is_word).count()
}

#[test]
fn no_sentence_of_the_documents_is_long() {
    let mut paths = markdown_below("docs");
    paths.push("README.md".into());
    let mut count = 0;
    let mut long = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(&path));
        let found = sentences(&text.expect("a document"));
        count += found.len();
        let too_long = found.iter().filter(|sentence| words(sentence) > MOST_WORDS);
        long.extend(too_long.map(|sentence| format!("{}: {sentence}", path.display())));
    }
    assert!(count >= SENTENCES, "{count} sentences");
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn long_sentences_are_found() {
    let long = "word ".repeat(MOST_WORDS + 1);
    let fits = "word ".repeat(MOST_WORDS);
    let text = format!(
        "# {long}\n\n{fits}. ({fits}.) {fits}? {long}.\n\n- `{long}`\n- {fits}\n- half: {fits}\n\n\
         | a |\n|---|\n| {fits}; {fits} |\n| {fits} |\n"
    );
    let found = sentences(&text);
    let long: Vec<_> = found
        .iter()
        .filter(|sentence| words(sentence) > MOST_WORDS)
        .collect();
    assert_eq!(long.len(), 3, "{found:#?}");
}
