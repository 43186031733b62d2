//! Facts carried as a file from one editor to another.

use crate::editor::{Bench, fact, go_on};
use addenda_editor::{Added, Error, inspect_patch};

fn import(bench: &mut Bench, file: &[u8]) -> Result<Vec<Result<Added, Error>>, Error> {
    let Bench {
        model,
        tokenizer,
        editor,
        ..
    } = bench;
    let planned = editor.plan_import(model, tokenizer, file, &mut go_on)?;
    editor.commit_adds(model, planned)
}

fn taught(dir: &std::path::Path) -> Bench {
    let mut bench = Bench::open(dir);
    bench.add(fact("Ann", "{} lives in", "Rome"));
    bench.add(fact("Bob Ray", "The dog of {} is", "Rex"));
    bench
}

#[test]
fn facts_that_are_taken_in_give_the_same_weights_as_where_they_came_from_also_after_a_restart() {
    let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let teacher = taught(there.path());
    let file = teacher.editor.export(true).unwrap();
    let about = inspect_patch(&file).unwrap();
    assert_eq!(about.facts.len(), 2);
    assert_eq!(about.matrices.len(), 2 * teacher.editor.patches().len());
    assert_eq!(about.revision, teacher.editor.revision());

    let mut pupil = Bench::open(here.path());
    let base = pupil.served();
    let added = import(&mut pupil, &file).unwrap();
    assert!(added.iter().all(Result::is_ok));
    assert_eq!(pupil.editor.revision(), teacher.editor.revision());
    assert_eq!(pupil.served(), teacher.served());
    drop(pupil);
    let mut pupil = Bench::open(here.path());
    assert_eq!(pupil.served(), teacher.served());
    // Once more changes nothing; and they can be retired like any other.
    let frames = pupil.editor.events(0).len();
    import(&mut pupil, &file).unwrap();
    assert_eq!(pupil.editor.events(0).len(), frames);
    for fact in added {
        pupil.retire(fact.unwrap().record.id);
    }
    assert_eq!(pupil.served(), base);
}

#[test]
fn facts_without_matrices_weigh_less_and_join_those_that_are_there() {
    let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut teacher = taught(there.path());
    let file = teacher.editor.export(false).unwrap();
    assert!(file.len() < teacher.editor.export(true).unwrap().len());
    let mut pupil = Bench::open(here.path());
    pupil.add(fact("Zoe", "{} {speaks}", "Welsh"));
    import(&mut pupil, &file).unwrap();
    teacher.add(fact("Zoe", "{} {speaks}", "Welsh"));
    assert_eq!(pupil.editor.active(), 3);
    let apart = (pupil.served() - teacher.served()).abs().max();
    assert!(f64::try_from(apart).unwrap() < 1e-5);
}

#[test]
fn a_patch_of_another_base_or_with_a_changed_byte_is_refused_and_changes_nothing() {
    let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut file = taught(there.path()).editor.export(false).unwrap();
    let mut pupil = Bench::open(here.path());
    let base = pupil.served();

    let (seven, eight) = ("07".repeat(32), "08".repeat(32));
    let named = format!("\"base\":\"{seven}\"");
    let mut windows = file.windows(named.len());
    let place = windows.position(|part| part == named.as_bytes()).unwrap() + "\"base\":\"".len();
    let mut other = file.clone();
    other[place..place + 64].copy_from_slice(eight.as_bytes());
    let error = import(&mut pupil, &other).unwrap_err();
    assert!(matches!(error, Error::OtherBase { .. }), "{error}");
    assert!(error.to_string().contains(&eight));

    let last = file.len() - 1;
    file[last] ^= 1;
    let error = import(&mut pupil, &file).unwrap_err();
    assert!(error.to_string().contains("digest"), "{error}");
    assert!(import(&mut pupil, b"{}").is_err());
    assert!(pupil.editor.events(0).is_empty());
    assert_eq!(pupil.served(), base);
}
