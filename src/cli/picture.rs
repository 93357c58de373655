//! A GPU as text: its line, and below it how its memory slices are cut and who holds what.

use crate::{
    cli::{
        cut::{Cell, Content, Cut},
        style::{Paint, Style},
        table::wrap,
    },
    model::{
        device::Target,
        gpu::{Gpu, GpuInstance, GpuUuid, Mig, Placement},
        plan::Origin,
        record::Held,
    },
};

/// Columns that the common case keeps to.
const WIDTH: usize = 100;

/// Columns between the borders of a picture, both ends counted as one.
const INNER: u32 = 64;

/// The least columns of a memory slice, its border included.
const NARROWEST: u32 = 4;

/// What stands under an instance that no record names.
const NOT_OURS: [&str; 2] = ["not ours", "foreign"];

/// A GPU's line and, where it is cut or held and has MIG, its picture. `held` is what claims hold, of
/// other GPUs too; `None` where nobody could tell.
pub fn picture(gpu: &Gpu, held: Option<&[Held<'_>]>, style: Style) -> String {
    let cut = Cut::new(gpu, held.unwrap_or_default());
    let Some(mig) = gpu.mig.as_ref() else { return line_of_whole(gpu, cut, held.is_some(), style) };
    let idle = cut.cells().iter().all(|cell| matches!(cell.content, Content::Free(_)));
    if idle && cut.whole().is_none() && (!mig.enabled || mig.memory_slices() == 0) {
        return line_of_whole(gpu, cut, held.is_some(), style);
    }
    let canvas = Canvas { style, pitch: pitch(mig), known: held.is_some() };
    let whole = cut.whole().filter(|_| mig.instances.is_empty());
    let below = match whole {
        Some(held) => canvas.draw(&[canvas.whole(mig, held)]),
        None => {
            let cells: Vec<_> = cut.cells().iter().map(|cell| canvas.cell(mig, cell)).collect();
            canvas.draw(&cells)
        }
    };
    let free = if whole.is_some() { String::new() } else { free(cut, style) };
    format!("{}\n{below}{}{free}", title(gpu, style), displaced(cut, style))
}

/// A GPU that did not answer.
pub(super) fn unreadable(index: u32, uuid: Option<&GpuUuid>, reason: &str, style: Style) -> String {
    let uuid = uuid.map(|uuid| format!("{}  ", short(&uuid.0))).unwrap_or_default();
    let name = style.paint(Paint::Bold, &format!("GPU {index}"));
    format!("{name}  {uuid}{} {reason}\n", style.paint(Paint::Red, "unreadable:"))
}

/// The part of a UUID that tells it from the others of a node: `GPU-5d1c2f0e`.
pub(super) fn short(uuid: &str) -> &str {
    match uuid.match_indices('-').nth(1) {
        Some((end, _)) => &uuid[..end],
        None => uuid,
    }
}

fn line_of_whole(gpu: &Gpu, cut: Cut<'_>, known: bool, style: Style) -> String {
    let holder = match cut.whole() {
        Some(held) => style.paint(Paint::Cyan, &held.by.label()),
        None if known => style.paint(Paint::Green, "free"),
        None => return format!("{}\n", title(gpu, style)),
    };
    format!("{}  {holder}\n", title(gpu, style))
}

fn title(gpu: &Gpu, style: Style) -> String {
    // Devices are named after the minor number, which need not be what nvidia-smi counts.
    let number = match gpu.number {
        number if number == gpu.index => String::new(),
        number => format!(" (gpu-{number})"),
    };
    let mut parts = vec![
        style.paint(Paint::Bold, &format!("GPU {}{number}", gpu.index)),
        gpu.product.clone(),
        short(&gpu.uuid.0).to_owned(),
        gpu.pci.clone(),
    ];
    parts.extend(gpu.numa_node.map(|node| format!("NUMA {node}")));
    parts.push(mig_mode(gpu.mig.as_ref()).to_owned());
    parts.join("  ")
}

fn mig_mode(mig: Option<&Mig>) -> &'static str {
    match mig.map(|mig| (mig.enabled, mig.pending)) {
        None => "no MIG",
        Some((true, true)) => "MIG on",
        Some((false, false)) => "MIG off",
        Some((true, false)) => "MIG on, off after a reset",
        Some((false, true)) => "MIG off, on after a reset",
    }
}

fn pitch(mig: &Mig) -> usize {
    let pitch = (INNER / mig.memory_slices().max(1)).max(NARROWEST);
    usize::try_from(pitch).unwrap_or_default()
}

/// A cell with its words.
struct Drawn {
    placement: Placement,
    paint: Paint,
    /// From the fullest to the shortest.
    labels: Vec<String>,
    /// Whose it is, likewise.
    below: Vec<String>,
}

struct Canvas {
    style: Style,
    /// Columns of a memory slice, its border included.
    pitch: usize,
    /// Whether it is known who holds what.
    known: bool,
}

impl Canvas {
    fn whole(&self, mig: &Mig, held: &Held<'_>) -> Drawn {
        Drawn {
            placement: Placement { start: 0, size: mig.memory_slices() },
            paint: Paint::Cyan,
            labels: vec!["whole".to_owned()],
            below: vec![held.by.label()],
        }
    }

    fn cell(&self, mig: &Mig, cell: &Cell<'_>) -> Drawn {
        let (paint, labels, below) = match &cell.content {
            Content::Free(true) => (Paint::Green, vec!["free".to_owned()], Vec::new()),
            Content::Free(false) => (Paint::Plain, Vec::new(), Vec::new()),
            Content::Reserved(held) => {
                let labels = labels(profile_name(held), "not carved");
                (Paint::Cyan, labels, vec![held.by.label()])
            }
            Content::Instance(instance, holder) => self.instance(mig, instance, *holder),
        };
        Drawn { placement: cell.placement, paint, labels, below }
    }

    fn instance(
        &self,
        mig: &Mig,
        instance: &GpuInstance,
        holder: Option<&Held<'_>>,
    ) -> (Paint, Vec<String>, Vec<String>) {
        let name = mig.profile(instance.profile).map_or("?", |profile| profile.name.as_str());
        let mark = match (instance.device(), holder) {
            // Neither one compute instance nor one that fills it: no claim can be given this.
            (None, _) => "no device",
            (_, Some(held)) if held.origin != Origin::Made => "admin",
            _ => "",
        };
        let labels = labels(name, mark);
        match holder {
            Some(held) => (Paint::Cyan, labels, vec![held.by.label()]),
            None if self.known => (Paint::Yellow, labels, NOT_OURS.map(str::to_owned).to_vec()),
            None => (Paint::Plain, labels, Vec::new()),
        }
    }

    fn draw(&self, cells: &[Drawn]) -> String {
        let lines = self.style.lines();
        let top = self.border(cells, lines.top);
        let bottom = self.border(cells, lines.bottom);
        let middle = self.middle(cells);
        let below = self.below(cells);
        format!("  {top}\n  {middle}\n  {bottom}\n{below}")
    }

    /// Columns between a cell's borders.
    fn width(&self, placement: Placement) -> usize {
        let slices = usize::try_from(placement.size).unwrap_or_default();
        (slices * self.pitch).saturating_sub(1)
    }

    fn border(&self, cells: &[Drawn], [left, join, right]: [char; 3]) -> String {
        let horizontal = self.style.lines().horizontal.to_string();
        let runs = cells.iter().map(|cell| horizontal.repeat(self.width(cell.placement)));
        format!("{left}{}{right}", runs.collect::<Vec<_>>().join(&join.to_string()))
    }

    fn middle(&self, cells: &[Drawn]) -> String {
        let vertical = self.style.lines().vertical;
        let mut line = vertical.to_string();
        for cell in cells {
            let width = self.width(cell.placement);
            let fits = |label: &&String| label.chars().count() <= width;
            let label = cell.labels.iter().find(fits).or(cell.labels.last());
            let label: String =
                label.map(|label| label.chars().take(width).collect()).unwrap_or_default();
            line.push_str(&self.style.paint(cell.paint, &format!("{label:^width$}")));
            line.push(vertical);
        }
        line
    }

    /// The line of holders; a name that is wider than its cell is told apart, under a number.
    fn below(&self, cells: &[Drawn]) -> String {
        if cells.iter().all(|cell| cell.below.is_empty()) {
            return String::new();
        }
        let (mut line, mut notes) = (String::new(), Vec::new());
        for cell in cells {
            let width = self.width(cell.placement);
            let fits = |text: &&String| text.chars().count() <= width;
            let text = match (cell.below.iter().find(fits), cell.below.first()) {
                (Some(text), _) => text.clone(),
                (None, None) => String::new(),
                (None, Some(text)) => {
                    let number = notes.len() + 1;
                    notes.push(format!("[{number}] {text}"));
                    format!("[{number}]")
                }
            };
            let space = width.saturating_sub(text.chars().count()) + 1;
            line.push_str(&self.style.paint(cell.paint, &text));
            line.push_str(&" ".repeat(space));
        }
        let notes = match notes.as_slice() {
            [] => String::new(),
            notes => wrap("   ", notes, "  ", WIDTH),
        };
        format!("   {}\n{notes}", line.trim_end())
    }
}

/// What is held and cannot be drawn, because something else lies there.
fn displaced(cut: Cut<'_>, style: Style) -> String {
    let lines = cut.displaced().into_iter().map(|held| {
        let what = style.paint(Paint::Red, "held, but something else lies there:");
        format!("   {what} {} ({})\n", held.by.label(), held.device)
    });
    lines.collect()
}

fn free(cut: Cut<'_>, style: Style) -> String {
    let times = style.times();
    let free = cut.free().into_iter();
    let mut items: Vec<_> =
        free.map(|(count, profile)| format!("{count} {times} {}", profile.name)).collect();
    if items.is_empty() {
        items.push("none".to_owned());
    }
    wrap("   free: ", &items, " or ", WIDTH)
}

fn profile_name<'h>(held: &Held<'h>) -> &'h str {
    match held.target {
        Target::Mig { profile_name, .. } => profile_name,
        Target::Gpu { .. } => "whole",
    }
}

/// `1g.10gb+me (mark)`, then less and less of it: the mark goes first, then the memory.
fn labels(name: &str, mark: &str) -> Vec<String> {
    let shorter = match (name.split_once('.'), name.find(['+', '-'])) {
        (Some((slices, _)), Some(suffix)) => format!("{slices}{}", &name[suffix..]),
        (Some((slices, _)), None) => slices.to_owned(),
        (None, _) => name.to_owned(),
    };
    let plain = [name.to_owned(), shorter];
    let marked = plain.clone().map(|label| format!("{label} ({mark})"));
    marked.into_iter().filter(|_| !mark.is_empty()).chain(plain).collect()
}

#[cfg(test)]
mod tests;
