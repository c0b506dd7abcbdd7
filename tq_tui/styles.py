"""The layout, in Textual's CSS. A string and not a file: nothing has to be found at run time.

Lines around screens are one cell high: 60x16 has no room for frames. Colours are the theme's."""

CSS = """
Screen { background: $background; }
#overview, #task { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }
#list-title { height: 1; padding: 0 1; color: $text-muted; background: $surface; text-wrap: nowrap; text-overflow: ellipsis; }
#filter-line { height: 1; background: $surface; }
#filter-mark { width: 2; color: $accent; text-style: bold; }
#filter { width: 1fr; }
#nodes { margin-bottom: 1; }
#map { padding: 0 1; }
#task-why { height: auto; }
Collapsible { margin-top: 1; }
Collapsible { height: auto; padding: 0; border: none; background: $background; }
Collapsible > Contents { padding: 0 0 0 2; }
CollapsibleTitle { padding: 0; color: $accent; }

/* Dialogs. */
ModalScreen { align: center middle; background: $background 60%; }
#dialog {
    width: 76; max-width: 100%; height: auto; max-height: 100%; padding: 0 1;
    background: $surface; border: round $primary; scrollbar-size-vertical: 1;
}
#dialog.large { width: 94%; height: 94%; }
#dialog.form { width: 80; }
#dialog-title { text-style: bold; color: $accent; height: auto; margin-bottom: 1; }
#dialog-middle { height: auto; max-height: 1fr; scrollbar-size-vertical: 1; }
#dialog-things { height: auto; margin-bottom: 1; text-wrap: nowrap; text-overflow: ellipsis; }
#dialog-text { height: auto; }
PromptScreen #dialog-text { margin-bottom: 1; }
#dialog-buttons { height: 1; margin-top: 1; }
#dialog-buttons Button { margin-right: 2; }
#dialog-keys { color: $text-muted; height: 1; }
ConfirmScreen #dialog { border: round $error; }
#help-scroll { height: 1fr; scrollbar-size-vertical: 1; }
#help-text { height: auto; }
#search { margin-bottom: 1; }
#call { height: auto; max-height: 8; margin-top: 1; color: $accent; }
.field { height: 1; }
.field .label { width: 9; color: $text-muted; }
.field Input { width: 1fr; max-width: 54; }
.field .says { width: auto; }
.says.bad, #payload-says.bad { color: $error; }
#types, #payload-says { height: 1; color: $text-muted; text-wrap: nowrap; text-overflow: ellipsis; }
#types { padding-left: 9; }
#payload-says { color: $success; padding-left: 9; }
#payload-field { height: 5; }
#payload { width: 1fr; height: 100%; padding: 0; background: $panel; }
.short #payload-field { height: 3; }
Input { background: $panel; }
CommandPalette > Vertical { width: 90%; max-width: 90; }
Toast { max-width: 90%; width: auto; min-width: 30; }
"""
