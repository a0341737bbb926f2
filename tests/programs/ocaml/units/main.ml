(* Answers what its two units say, and captures functions of one. *)

let junk = ref []

let spend () =
  junk := [];
  for i = 1 to 2000 do
    junk := string_of_int i :: !junk
  done

let limit n =
  match Unit_a.f n with
  | _ -> "none"
  | exception Unit_a.Limit n -> string_of_int n

let fork () =
  match Unix.fork () with
  | 0 ->
      Unix.sleepf 0.001;
      print_endline ("child " ^ Unit_a.name);
      exit 0
  | child ->
      ignore (Unix.waitpid [] child);
      "parent " ^ Unit_a.name

let lines text = String.concat "|" (String.split_on_char '\n' text)

let answer line =
  match String.split_on_char ' ' line with
  | [ "f"; n ] -> string_of_int (Unit_a.f (int_of_string n))
  | [ "name" ] -> Unit_a.name
  | [ "b" ] -> Unit_b.name
  | [ "seen"; word ] -> string_of_int (Unit_a.seen word)
  | [ "limit"; n ] -> limit (int_of_string n)
  | [ "trace" ] -> lines (Printexc.get_backtrace ())
  | [ "fork" ] -> fork ()
  | [ "compact" ] ->
      spend ();
      Gc.compact ();
      "compacted"
  | _ -> "what?"

let () =
  Printexc.record_backtrace true;
  print_endline "ready";
  try
    while true do
      print_endline (answer (read_line ()))
    done
  with End_of_file -> ()
