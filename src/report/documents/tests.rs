use crate::model::finished::samples::finished;
use crate::model::finished::{About, Finished};
use crate::report::documents::collapsed::collapsed;

/// The sample without call stacks, as of a session that recorded none.
fn without_stacks() -> Finished {
    Finished {
        sites: Vec::new(),
        about: About::default(),
        ..finished()
    }
}

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
