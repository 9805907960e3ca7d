//! Reading a file that names programs to be run.

use std::path::Path;

/// The text of a file that nobody else could have written: it names programs that we run.
pub(super) fn read_private(path: &Path) -> Result<String, String> {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;
    let own = nix::unistd::geteuid().as_raw();
    let text = |error: std::io::Error| error.to_string();
    let mut file = std::fs::File::open(path).map_err(text)?;
    let metadata = file.metadata().map_err(text)?;
    if !metadata.is_file() {
        return Err("not a file".into());
    }
    let check = |what: &str, metadata: &std::fs::Metadata, sticky: bool| {
        if metadata.uid() != own && metadata.uid() != 0 {
            return Err(format!(
                "{what} belongs to another user ({}), who could have commands run",
                metadata.uid()
            ));
        }
        // In a directory like /tmp others may make files, but not replace this one.
        if metadata.mode() & 0o022 != 0 && !(sticky && metadata.mode() & 0o1000 != 0) {
            return Err(format!(
                "others may write {what}, and so have commands run; run: chmod go-w {}",
                path.display()
            ));
        }
        Ok(())
    };
    check("the file", &metadata, false)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    let directory = std::fs::metadata(parent).map_err(text)?;
    check(
        &format!("its directory {}", parent.display()),
        &directory,
        true,
    )?;
    let mut content = String::new();
    file.read_to_string(&mut content).map_err(text)?;
    Ok(content)
}
