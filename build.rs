//! Copies the two embedded files of Swagger UI out of the package that contains them. Needs no network.

use std::borrow::Cow;
use std::error::Error;
use std::io::{Cursor, Read};
use std::path::PathBuf;
use std::{env, fs};

const FILES: [&str; 2] = ["swagger-ui-bundle.js", "swagger-ui.css"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let mut archive = zip::ZipArchive::new(Cursor::new(utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED))?;
    for file in FILES {
        // The main build, not the one of a flavour of it.
        let wanted = |name: &str| name.split('/').skip(1).eq(["dist", file]);
        let mut names = archive.file_names().filter_map(Result::ok).map(Cow::into_owned);
        let name = names.find(|name| wanted(name)).ok_or_else(|| format!("the package has no dist/{file}"))?;
        drop(names);
        let mut bytes = Vec::new();
        archive.by_name(&name)?.read_to_end(&mut bytes)?;
        fs::write(out.join(file), bytes)?;
    }
    Ok(())
}
