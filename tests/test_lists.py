"Lists with anything in them: read, or refused in one line that names the file and what to do."
import os
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from hpa_fastai.images.splits import fold_numbers, yes_rows
from hpa_fastai.labels import DataError, read_csv_checked, read_labels, read_submission

def message(f, *args):
    "What a call is refused with: one line that begins with the name of the file"
    with pytest.raises(DataError) as e: f(*args)
    assert len(str(e.value).splitlines()) == 1 and len(str(e.value)) < 3000
    return str(e.value)

@pytest.fixture
def file(tmp_path): return tmp_path/'train.csv'

wrong = dict(
    comma_at_the_end=(b'Id,Target\na,1,\nb,2,\n', 'line 2 has 3 fields for 2 columns; remove the comma at its end'),
    one_field_more=(b'Id,Target\na,1\nb,2,3\n', 'line 3 has 3 fields for 2 columns; put a field that holds a comma'),
    one_field_less=(b'Id,Target\na,1\nb\n', 'line 3 has 1 fields for 2 columns; write one for each column'),
    blank_lines=(b'Id,Target\n\n\na,1\n  \nb,99\n', "line 6 (Id b): unknown label '99'"),
    field_of_two_lines=(b'Id,Target,n\na,1,"x\ny"\nb,99,\n', "line 4 (Id b): unknown label '99'"),
    windows_lines=(b'Id,Target\r\n\r\na,1\r\nb,99\r\n', "line 4 (Id b): unknown label '99'"),
    superscript=('Id,Target\na,²\n'.encode(), "line 2 (Id a): unknown label '²'; labels are the numbers 0 to 27"),
    full_width=('Id,Target\na,１\n'.encode(), "line 2 (Id a): unknown label '１'; labels are the numbers"),
    two_signs=(b'Id,Target\na,--5\n', "line 2 (Id a): unknown label '--5'; labels are the numbers"),
    many_digits=(b'Id,Target\na,' + b'1'*5000 + b'\n', 'line 2 (Id a): unknown label'),
    zero_byte=(b'Id,Target\na,1\nb,1\0\n', 'line 3 holds a zero byte'),
    utf16=('Id,Target\na,1\n'.encode('utf-16'), 'line 1 is not UTF-8 text'),
    same_column_twice=(b'Id,Target,Target\na,1,2\n', "line 1 names the column 'Target' twice; keep one"),
    header_only=(b'Id,Target\n', 'a header but no rows'),
    nothing=(b'', 'not a readable CSV (it is empty)'),
    blank=(b'\n \n', 'not a readable CSV (it is empty)'),
    semicolons=(b'Id;Target\na;1\n', "line 1 lacks the column Id, Target (it has ['Id;Target'])"),
    header_lower_down=(b'\n\nId,Label\na,1\n', 'line 3 lacks the column Target'),
    many_columns=(b'Id,Target' + b',x'*1_000_000 + b'\na,1\n', 'line 1 names 1000002 columns'),
    quote_not_closed=(b'Id,Target\na,1\nb,"2\nc,3\n', 'line 3: not CSV (unexpected end of data)'),
    break_in_a_name=('Id,T\u2028arget\na,1\n'.encode(), 'line 1 lacks the column Target'),
    break_in_an_id=('Id,Target\na\u2028b,1\n'.encode(), 'line 2: the Id'),
    long_field=(b'Id,Target\na,' + b'1 '*100_000 + b'\n', 'line 2: not CSV (field larger than field limit'))

@pytest.mark.parametrize('content, said', wrong.values(), ids=wrong)
def test_wrong_lists(content, said, file):
    file.write_bytes(content)
    found = message(read_labels, file)
    assert found.startswith(f'{file}: ') and said in found

def test_what_is_no_list(tmp_path):
    assert 'a folder; give the list in it' in message(read_labels, tmp_path)
    assert 'no such file' in message(read_labels, tmp_path/'none.csv')
    assert 'not readable' in message(read_labels, tmp_path/('a'*300))
    if not hasattr(os, 'mkfifo'): return
    os.mkfifo(tmp_path/'pipe.csv')
    assert 'not a regular file' in message(read_labels, tmp_path/'pipe.csv')

def test_what_cannot_be_read(file, monkeypatch):
    file.write_text('Id,Target\na,1\n')
    def refuse(self): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(type(file), 'read_bytes', refuse)
    assert 'not readable (Permission denied)' in message(read_labels, file)

def test_right_lists(file):
    "A mark at the beginning, columns without a name, commas in quotes and old line ends are read"
    for content in ('\ufeffId,Target\na,1 0\nb,2\n', 'Id,Target\ra,1 0\rb,2\r', ' \nId,Target\n\n"a","1 0"\nb,2\n'):
        file.write_text(content, encoding='utf-8', newline='')
        assert read_labels(file).to_dict('list') == dict(Id=['a', 'b'], Target=['0 1', '2'])
    file.write_text(',Id,Target,\n0,a,1,\n')
    assert read_labels(file).columns.tolist() == ['Unnamed: 0', 'Id', 'Target', 'Unnamed: 3']

pieces = [b'Id', b'Target', b'Predicted', b',', b'\n', b'\r\n', b'"', b'a', b'b', b'1', b'25 0', b'-', b'\0', b'\xff',
          b' ', b';', '²１\u2028\x85'.encode(), b'\xef\xbb\xbf', b'nan', b'1e9', b'=1']

@settings(max_examples=400)
@given(st.one_of(st.binary(max_size=60), st.lists(st.sampled_from(pieces), max_size=14).map(b''.join),
                 st.lists(st.sampled_from(pieces), max_size=10).map(lambda o: b'Id,Target\na,1\n' + b''.join(o))))
def test_any_bytes(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp()/'any.csv'
    file.write_bytes(content)
    for read in (read_labels, read_submission, lambda o: read_csv_checked(o, ['Id', 'fold'])):
        try: df = read(file)
        except DataError as e: assert len(str(e).splitlines()) == 1 and str(e).startswith(f'{file}: ')
        else: assert len(df) and df.Id.is_unique

def test_folds_and_marks_name_the_row():
    df = pd.DataFrame(dict(Id=['a', 'b'], fold=['0', '1e30'], train_only=['no', 'perhaps']))
    assert message(fold_numbers, df, 'fold', 'folds.csv').startswith("folds.csv: row 2: fold is '1e30' (Id b); write a")
    said = message(yes_rows, df, 'train_only', 'train.csv')
    assert said.startswith("train.csv: row 2: train_only is 'perhaps' (Id b)")
    for wrong in ('½', '1\n2', 'nan', '', '-2', '1.5', 'inf'): message(fold_numbers, df.assign(fold=['0', wrong]))
    assert np.array_equal(fold_numbers(df.assign(fold=['-1', '3'])), [-1, 3])
