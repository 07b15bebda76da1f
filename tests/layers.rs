//! The house rules that the compiler does not keep: layers, sizes, where `unsafe` may stand.
//!
//! `src/lib.rs` declares its modules bottom-up, and a module imports only itself and modules declared
//! above it. The same holds for the modules of `src/main.rs` among each other.
//!
//! Invariants
//! - Code is judged, prose is not: comments (and so links in documentation), strings and characters
//!   are skipped by a small lexer, not by patterns on lines.
//! - Items under `#[cfg(test)]` may import anything, as does a file included by such a `mod`.
//! - A path through a re-export at the root (`crate::Error`) is refused: it hides the layer.

#[path = "layers/tokens.rs"]
mod tokens;

use std::collections::BTreeSet;
use std::path::Path;

use tokens::{Token, tokens};

const CODE_LINES_MAX: usize = 500;
const UNSAFE_MODULES: [&str; 4] = ["channel", "disk", "state", "record"];

#[test]
fn every_module_imports_only_modules_declared_above_it() {
    let house = House::of_this_package();
    for root in ["src/lib.rs", "src/main.rs"] {
        let declared = house.declared(root);
        assert_none(house.layer_violations(root, &declared));
    }
}

#[test]
fn every_source_file_belongs_to_a_declared_module() {
    let house = House::of_this_package();
    let declared = [house.declared("src/lib.rs"), house.declared("src/main.rs")].concat();
    let for_tests: Vec<String> = house.files.iter().flat_map(File::test_modules).collect();
    let strays = house.files.iter().filter(|file| {
        file.path.starts_with("src/")
            && !["src/lib.rs", "src/main.rs"].contains(&&*file.path)
            && !declared.iter().any(|module| module == file.module())
            && !for_tests.iter().any(|module| file.is_in(module))
    });
    assert_none(strays.map(|file| format!("{}: no module of this name", file.path)).collect());
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    let house = House::of_this_package();
    assert_none(house.files.iter().filter_map(File::size_violation).collect());
}

#[test]
fn unsafe_stands_only_in_its_few_modules() {
    let house = House::of_this_package();
    assert_none(house.files.iter().filter_map(File::unsafe_violation).collect());
}

fn assert_none(violations: Vec<String>) {
    assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), violations.join("\n"));
}

/// All Rust files of the package.
struct House {
    files: Vec<File>,
}

/// One file, by its path from the package's root, cut into tokens.
struct File {
    path: String,
    tokens: Vec<Token>,
}

impl House {
    fn of_this_package() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = Vec::new();
        for folder in ["src", "tests", "benches", "examples", "tools"] {
            collect(root, &root.join(folder), &mut files);
        }
        assert!(files.iter().any(|file| file.path == "src/lib.rs"), "{} files", files.len());
        Self { files }
    }

    /// Modules that `root` declares, in their order. Those for tests only are left out.
    fn declared(&self, root: &str) -> Vec<String> {
        let root = self.files.iter().find(|file| file.path == root).expect("the crate's root");
        let live = outside_tests(&root.tokens).0;
        let names = live.windows(3).filter(|w| w[0].text == "mod" && w[2].text == ";");
        names.map(|w| w[1].text.clone()).collect()
    }

    fn layer_violations(&self, root: &str, declared: &[String]) -> Vec<String> {
        let for_tests: Vec<String> = self.files.iter().flat_map(File::test_modules).collect();
        let rank = |name: &str| declared.iter().position(|module| module == name);
        let mut violations = Vec::new();
        for file in self.files.iter().filter(|file| file.path.starts_with("src/")) {
            let Some(own) = rank(file.module()) else { continue };
            if for_tests.iter().any(|module| file.is_in(module)) {
                continue;
            }
            for import in file.imports() {
                let wrong = match rank(&import.text) {
                    Some(other) if other <= own => continue,
                    Some(_) => format!("is declared below {} in {root}", file.module()),
                    None => format!("is no module of {root}; name the module the item lives in"),
                };
                violations.push(format!("{}:{}: {} {wrong}", file.path, import.line, import.text));
            }
        }
        violations
    }
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<File>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("entry").path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            collect(root, &path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a readable source file");
            let path = path.strip_prefix(root).expect("below the root");
            files.push(File::new(path.to_str().expect("a UTF-8 path"), &text));
        }
    }
}

impl File {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.into(), tokens: tokens(text) }
    }

    /// The top module it is part of: its name or its folder's below `src`.
    fn module(&self) -> &str {
        let below = self.path.strip_prefix("src/").unwrap_or("");
        below.split('/').next().unwrap_or("").trim_end_matches(".rs")
    }

    /// How many modules lie between the root and its items, itself included.
    fn depth(&self) -> usize {
        self.path.split('/').count() - 1 - usize::from(self.path.ends_with("/mod.rs"))
    }

    /// Top modules that its code outside tests names, by `crate::` or by enough `super::`.
    fn imports(&self) -> Vec<Token> {
        let code = outside_tests(&self.tokens).0;
        let mut imports = Vec::new();
        let mut blocks: Vec<bool> = Vec::new();
        let mut supers = 0;
        for (i, token) in code.iter().enumerate() {
            let follows = code.get(i + 1).is_some_and(|next| next.text == "::");
            match &*token.text {
                "{" => blocks.push(i >= 2 && code[i - 2].text == "mod"),
                "}" => drop(blocks.pop()),
                "::" => {}
                "crate" if follows => imports.extend(heads(&code[i + 2..])),
                "super" if follows => {
                    supers += 1;
                    let inline = blocks.iter().filter(|is_module| **is_module).count();
                    if supers >= self.depth() + inline {
                        let heads = heads(&code[i + 2..]).into_iter();
                        imports.extend(heads.filter(|head| head.text != "super"));
                    }
                    continue;
                }
                _ => supers = 0,
            }
        }
        imports
    }

    /// Modules that it includes for tests only, as paths without `.rs`.
    fn test_modules(&self) -> Vec<String> {
        let folder = match self.path.rsplit_once('/') {
            Some((folder, "lib.rs" | "main.rs" | "mod.rs")) => folder,
            _ => self.path.trim_end_matches(".rs"),
        };
        let names = outside_tests(&self.tokens).1;
        names.into_iter().map(|name| format!("{folder}/{name}")).collect()
    }

    fn is_in(&self, module: &str) -> bool {
        let below = self.path.strip_prefix(module);
        below.is_some_and(|below| below == ".rs" || below.starts_with('/'))
    }

    fn size_violation(&self) -> Option<String> {
        let lines: BTreeSet<usize> = self.tokens.iter().map(|token| token.line).collect();
        (lines.len() > CODE_LINES_MAX)
            .then(|| format!("{}: {} code lines, at most {CODE_LINES_MAX}", self.path, lines.len()))
    }

    fn unsafe_violation(&self) -> Option<String> {
        let home = UNSAFE_MODULES.contains(&self.module()) || !self.path.starts_with("src/");
        let token = self.tokens.iter().find(|token| token.text == "unsafe").filter(|_| !home)?;
        Some(format!("{}:{}: unsafe has no home here", self.path, token.line))
    }
}

/// The first names of a path or, of `{a, b::c}`, of each path in it.
fn heads(code: &[Token]) -> Vec<Token> {
    if code.first().is_none_or(|token| token.text != "{") {
        return code.first().into_iter().cloned().collect();
    }
    let mut heads = Vec::new();
    let mut depth = 0;
    for (i, token) in code.iter().enumerate() {
        match &*token.text {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ if depth == 1 && ["{", ","].contains(&&*code[i - 1].text) => {
                heads.extend((token.text != ",").then(|| token.clone()));
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

/// The tokens that are compiled without `cfg(test)`, and the names of `mod name;` that are not.
fn outside_tests(tokens: &[Token]) -> (Vec<Token>, Vec<String>) {
    let (mut live, mut test_modules) = (Vec::new(), Vec::new());
    let mut i = 0;
    while i < tokens.len() {
        let inner = tokens[i].text == "#" && tokens.get(i + 1).is_some_and(|next| next.text == "!");
        let bracket = i + 1 + usize::from(inner);
        if tokens[i].text != "#" || tokens.get(bracket).is_none_or(|next| next.text != "[") {
            live.push(tokens[i].clone());
            i += 1;
            continue;
        }
        let end = closing(tokens, bracket);
        if !is_test_condition(&tokens[bracket + 1..end]) {
            i = end + 1;
        } else if inner {
            return (live, test_modules);
        } else {
            let item = item_end(tokens, end + 1);
            let skipped = &tokens[end + 1..item];
            let modules = skipped.windows(3).filter(|w| w[0].text == "mod" && w[2].text == ";");
            test_modules.extend(modules.map(|w| w[1].text.clone()));
            i = item;
        }
    }
    (live, test_modules)
}

/// Whether an attribute is `cfg(test)` or `cfg(all(test, ..))`; `any` and `not` compile without it.
fn is_test_condition(attribute: &[Token]) -> bool {
    let words: Vec<&str> = attribute.iter().map(|token| &*token.text).collect();
    words.starts_with(&["cfg", "(", "test", ")"])
        || words.starts_with(&["cfg", "(", "all", "("])
            && words.contains(&"test")
            && !words.contains(&"not")
            && !words.contains(&"any")
}

/// Index after the item that starts at `start`: its `;` or the end of its outermost braces.
fn item_end(tokens: &[Token], start: usize) -> usize {
    let mut i = start;
    while i < tokens.len() {
        match &*tokens[i].text {
            ";" => return i + 1,
            "}" => return i,
            "{" if tokens[start].text != "use" => return closing(tokens, i) + 1,
            "{" | "(" | "[" => i = closing(tokens, i) + 1,
            _ => i += 1,
        }
    }
    i
}

/// Index of the bracket that closes the one at `open`.
fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        match &*token.text {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i;
        }
    }
    tokens.len() - 1
}

/// Violations of the file `path` with `text` in a house whose layers are `low`, `mid`, `high`.
fn violations_of(path: &str, text: &str) -> Vec<String> {
    let lib = "//! Map.\npub mod low;\npub mod mid;\n#[cfg(test)]\nmod only;\npub mod high;\n";
    let house = House { files: vec![File::new("src/lib.rs", lib), File::new(path, text)] };
    let declared = house.declared("src/lib.rs");
    assert_eq!(declared, ["low", "mid", "high"]);
    house.layer_violations("src/lib.rs", &declared)
}

#[test]
fn an_import_from_above_is_found_however_it_is_written() {
    for text in [
        "use crate::high::Thing;",
        "use crate::{low, high::{Thing, Other}};",
        "pub(crate) use crate::high;",
        "fn f() { crate::high::f() }",
        "use super::high;",
        "macro_rules! m { () => { $crate::high::f() } }",
        "#[cfg(not(test))] use crate::high;",
        "mod inner { use super::super::high; }",
        "use crate::Thing;",
        "/* a /* nested */ comment */ const C: char = '\"'; use crate::high; // \"",
        "const S: &str = r#\"a \" in it\"#; use crate::high;",
        "#[cfg(test)] use crate::{low, high}; use crate::high::Late;",
    ] {
        assert_eq!(violations_of("src/mid.rs", text).len(), 1, "{text}");
    }
    assert_eq!(violations_of("src/mid/part.rs", "use super::super::high;").len(), 1);
    assert_eq!(
        violations_of("src/mid/mod.rs", "\n\nuse super::high;"),
        ["src/mid/mod.rs:3: high is declared below mid in src/lib.rs"]
    );
}

#[test]
fn an_allowed_import_or_mere_prose_is_let_through() {
    for text in [
        "use crate::low::Thing; use crate::mid::Own; use self::inner::X; use std::fmt;",
        "//! See [`Thing`](crate::high::Thing).\n/// [crate::high]\n// use crate::high;",
        "const S: &str = \"use crate::high;\"; const L: &[u8] = b\"\\\"crate::high\";",
        "#[cfg(test)]\nmod tests { use crate::high::Thing; fn f() { if true {} } }",
        "#[cfg(all(test, tidegate_loom))]\nuse crate::{high, low};",
        "fn f<'a>(x: &'a str) -> &'a str { x } const C: char = '\\'';",
        "mod inner { use super::part; }",
    ] {
        assert_eq!(violations_of("src/mid.rs", text), [""; 0], "{text}");
    }
    assert_eq!(
        violations_of("src/mid/part.rs", "use super::other; use super::super::low;").len(),
        0
    );
}

#[test]
fn a_file_included_for_tests_may_import_anything() {
    let lib = "pub mod low; pub mod high;";
    let house = House {
        files: vec![
            File::new("src/lib.rs", lib),
            File::new("src/low/mod.rs", "#[cfg(test)]\nmod tests;"),
            File::new("src/low/tests.rs", "mod more; use crate::high;"),
            File::new("src/low/tests/more.rs", "use crate::high;"),
        ],
    };
    assert_eq!(house.layer_violations("src/lib.rs", &house.declared("src/lib.rs")).len(), 0);
}

#[test]
fn size_and_unsafe_are_judged_by_code_not_by_prose() {
    let prose = "// unsafe\n".repeat(CODE_LINES_MAX + 1);
    let file = File::new("src/mid.rs", &prose);
    assert_eq!((file.size_violation(), file.unsafe_violation()), (None, None));
    let code = "unsafe {}\n".repeat(CODE_LINES_MAX + 1);
    let file = File::new("src/mid.rs", &code);
    assert!(file.size_violation().is_some() && file.unsafe_violation().is_some());
    assert!(File::new("src/disk/uring.rs", "unsafe {}").unsafe_violation().is_none());
    let text = "const S: &str = \"a\nb\nc\";";
    assert_eq!(File::new("src/mid.rs", text).tokens.last().map(|token| token.line), Some(3));
}
