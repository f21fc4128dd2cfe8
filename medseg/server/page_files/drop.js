// What a person gives: files and folders, chosen or dropped, as scans.

const ALONE = /\.(nii|nii\.gz|nrrd|nhdr|mha|mhd|zip|png|jpe?g|tiff?|gif)$/i; // each such file is a scan of its own

/** Return the scans among files: each of its own, or all of them as one DICOM scan. */
export function scansOf(name, files) {
  const seen = files.filter((file) => !file.name.startsWith("."));
  if (!seen.length) return [];
  if (seen.every((file) => ALONE.test(file.name))) return seen.map((file) => ({ name: file.name, files: [file] }));
  return [{ name: name || (seen.length === 1 ? seen[0].name : `${seen.length} DICOM files`), files: seen }];
}

/** Return the scans among what was dropped; folders are walked through. */
export async function scansIn(transfer) {
  // all are taken before anything is waited for: the list is gone then
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const loose = [];
  const scans = [];
  for (const entry of entries) {
    if (entry.isDirectory) scans.push(...scansOf(entry.name, await walk(entry)));
    else loose.push(await fileOf(entry));
  }
  return [...scansOf("", loose), ...scans];
}

/** Return the scans that an input of files or of a folder holds. */
export function scansChosen(input) {
  const files = [...input.files];
  const folder = files[0]?.webkitRelativePath.split("/")[0] ?? "";
  input.value = ""; // the same may be chosen again
  return scansOf(folder, files);
}

/** Return a place for scans of one channel; `given` is called with them, `failed` with what cannot be read. */
export function dropZone(channel, given, failed) {
  const zone = document.getElementById("drop").content.firstElementChild.cloneNode(true);
  zone.querySelector(".asks").textContent = channel ? `Drop the ${channel} scan here` : "Drop a scan here";
  for (const kind of ["files", "folder"]) {
    const input = zone.querySelector(`input.${kind}`);
    const button = zone.querySelector(`button.${kind}`);
    button.addEventListener("click", () => input.click());
    if (channel) button.setAttribute("aria-label", `${button.textContent}: ${channel}`);
    input.addEventListener("change", () => given(scansChosen(input)));
  }
  for (const kind of ["dragenter", "dragover"]) zone.addEventListener(kind, () => zone.classList.add("over"));
  for (const kind of ["dragleave", "drop"]) zone.addEventListener(kind, () => zone.classList.remove("over"));
  zone.addEventListener("drop", async (event) => {
    event.preventDefault();
    event.stopPropagation();
    try {
      given(await scansIn(event.dataTransfer));
    } catch (error) {
      failed(`this cannot be read: ${error.message}`);
    }
  });
  return zone;
}

async function walk(folder) {
  const reader = folder.createReader();
  const files = [];
  for (;;) {
    const some = await new Promise((done, fail) => reader.readEntries(done, fail)); // a hundred at a time
    if (!some.length) return files;
    for (const entry of some) files.push(...(entry.isDirectory ? await walk(entry) : [await fileOf(entry)]));
  }
}

function fileOf(entry) {
  return new Promise((done, fail) => entry.file(done, fail));
}
