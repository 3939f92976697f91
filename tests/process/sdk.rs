//! The providers' official SDKs from PyPI, with only the base URL and the key changed.

use crate::support::*;
use std::path::PathBuf;
use std::process::Command;

/// The Python with the SDKs, if it is installed.
fn python() -> Option<PathBuf> {
    let python = repository().join("target/sdk/bin/python");
    let installed = python.exists()
        && Command::new(&python)
            .args(["-c", "import vectara, foundry_sdk"])
            .status()
            .is_ok_and(|status| status.success());
    require_tool("the providers' SDKs (PyPI)", installed).then_some(python)
}

#[test]
fn the_python_lines_of_the_documentation_work_against_the_demo() {
    let Some(python) = python() else { return };
    let config = Config::shipped();
    // The shipped clients include the demo's key.
    std::fs::copy(repository().join("config/clients.yaml"), config.path("clients.yaml")).unwrap();
    let mut demo = Process::start(&mut config.command(&["demo"]));
    let address = wait_for_line(&demo.stdout, "Weir listens on http://");
    let address = address.split(' ').next().unwrap();
    let text = std::fs::read_to_string(repository().join("docs/NATIVE.md")).unwrap();
    let blocks: Vec<&str> = text.split("```python\n").skip(1).map(|block| block.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 3);
    for block in blocks {
        let output = Command::new(&python).args(["-c", &block.replace("127.0.0.1:8080", address)]).output().unwrap();
        let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && printed.trim().len() > 3, "{block}\n{printed}\n{errors}");
    }
    demo.signal("INT");
    assert_eq!(demo.wait().code(), Some(0));
}

#[test]
fn the_providers_official_sdks_work_through_weir() {
    let Some(python) = python() else { return };
    let sim = Sim::with_options(&["--sessions", "57"]);
    let weir = Config::shipped()
        .clients("clients:\n  - { id: open, keys: [ { sha256: SHA(open) } ] }\n  - { id: once, keys: [ { sha256: SHA(once) } ], rate_limit: once }\n  - { id: brisk, keys: [ { sha256: SHA(brisk) } ], rate_limit: brisk }\n  - { id: plain, keys: [ { sha256: SHA(plain) } ], native: false }\n")
        .edit("weir.yaml", "rate_limits:\n", "rate_limits:\n  once:\n    requests: 1\n    per: 1h\n  brisk:\n    requests: 1\n    per: 1s\n")
        .start(&sim);
    let script = repository().join("tests/sdk/session.py");
    let mut command = Command::new(&python);
    command.arg(script).env("WEIR", weir.http.to_string()).env("WEIR_ADMIN", weir.admin.to_string());
    let output = command.env("SIM", sim.address.to_string()).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("\nok"), "{text}");
    println!("{text}");
    // The SDKs do not retry a 429 that cannot succeed soon: each refused call is one request.
    let limited = "weir_rate_limit_requests_total{client=\"once\",decision=\"limited\",policy=\"once\"}";
    assert_eq!(weir.metric(limited), 2.0);
}
