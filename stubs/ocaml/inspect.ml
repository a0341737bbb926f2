(* Answers questions about compiled units, one line of JSON for each line of input, until its
   input ends. It is built with the user's compiler, because .cmi, .cmt and .cmx are that
   compiler's own. *)

open Json

let failure kind text = Object [ ("error", String kind); ("text", String text) ]

let report error =
  match Location.error_of_exn error with
  | Some (`Ok report) ->
      String.trim (Format.asprintf "%a" Location.print_report report)
  | _ -> Printexc.to_string error

let standard_interface () =
  let infos = Cmi_format.read_cmi (Filename.concat Config.standard_library "stdlib.cmi") in
  Unit.optional_digest (List.assoc "Stdlib" infos.cmi_crcs)

let about () =
  Object
    [
      ("version", String Sys.ocaml_version); ("where", String Config.standard_library);
      ("flambda", Bool Config.flambda); ("architecture", String Config.architecture);
      ("interface_magic", String Config.cmi_magic_number);
      ("standard_interface", standard_interface ());
    ]

let answer line =
  match String.split_on_char '\t' line with
  | [ "about" ] -> about ()
  | [ "unit"; folder; cmi; cmt; cmx ] -> Unit.describe ~folder ~cmi ~cmt ~cmx
  | _ -> failure "request" ("not a request: " ^ line)

let guarded line =
  try answer line with
  | Unit.Wrong_file (kind, text) -> failure kind text
  | Cmi_format.Error (Wrong_version_interface (file, older_or_newer)) ->
      failure "version" (Printf.sprintf "%s was made by %s OCaml" file older_or_newer)
  | Cmt_format.Error (Not_a_typedtree file) -> failure "unreadable" (file ^ " is no .cmt")
  | Sys_error text -> failure "unreadable" text
  | (End_of_file | Failure _) as error ->
      failure "unreadable" ("a file is cut short: " ^ Printexc.to_string error)
  | error -> failure "unreadable" (report error)

(* A question makes much garbage and little else: memory is cheaper than collecting it. *)
let () =
  Gc.set { (Gc.get ()) with minor_heap_size = 1 lsl 20; space_overhead = 10_000 };
  Clflags.dont_write_files := true;
  try
    while true do
      let line = input_line stdin in
      print_endline (to_string (guarded line))
    done
  with End_of_file -> ()
