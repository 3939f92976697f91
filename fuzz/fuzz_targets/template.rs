//! Renders arbitrary values into a URL template: they stay in their path segment, and reading the URL returns them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir::testing::{Captured, Template};

const PATHS: [&str; 3] = [
    "GET /v2/agents/{agent}/sessions/{session}",
    "GET /v2/agents/{agent}/sessions/{session}.json",
    "GET /v2/agents/a-{agent}/sessions/('{session}')",
];

type Input = (u8, String, String, Option<u32>, Option<String>, Option<bool>, Option<u64>, Option<u64>);

fuzz_target!(|input: Input| {
    let (path, agent, session, limit, page_token, enabled, page, offset) = input;
    let mut template = Template::compile(PATHS[usize::from(path) % PATHS.len()]).expect("a template");
    let parameters = [("limit", "{limit}"), ("key", "{page_token}"), ("enabled", "{enabled}")];
    for (name, value) in parameters.into_iter().chain([("page", "{page}"), ("skip", "{offset}")]) {
        template.add_query(name, value).expect("a parameter");
    }
    let values = Captured { agent: Some(agent), session: Some(session), limit, page_token, page, offset, enabled };
    let Ok(rendered) = template.render(&values.values()) else { return };
    let (path, query) = rendered.split_once('?').unwrap_or((&rendered, ""));
    assert_eq!(path.split('/').count(), 6, "{rendered}");
    let empty = values.agent.as_deref() == Some("") || values.session.as_deref() == Some("");
    if !empty {
        assert_eq!(template.read(path, query), Some(values), "{rendered}");
    }
    let _ = (template.read_path(&rendered), template.matches_leniently(&rendered));
    let _ = Template::compile(&rendered);
});
